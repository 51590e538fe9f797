"""`taufree relax`, `vibrations`, `md`: a table and JSON, or one line that says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from click.testing import Result
from typer.testing import CliRunner

from taufree.ase import TauFree
from taufree.cli import app


def taufree(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture(autouse=True)
def springs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two atoms at 0.8 Å in place of a calculation, in an otherwise empty folder."""

    def calculate(self: Any, atoms: Any = None, properties: Any = (), changes: Any = ()) -> None:
        self.atoms = atoms.copy()
        bond = atoms.positions[1] - atoms.positions[0]
        length = np.linalg.norm(bond)
        force = 30 * (length - 0.8) * bond / length
        energy = 15 * (length - 0.8) ** 2
        forces = np.array([force, -force])
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}

    monkeypatch.setattr(TauFree, "calculate", calculate)
    monkeypatch.chdir(tmp_path)
    write("h2.xyz", Atoms("H2", [[0, 0, 0], [0, 0, 0.9]]))
    write("minimum.xyz", Atoms("H2", [[0, 0, 0], [0, 0, 0.8]]))


def test_relax() -> None:
    done = taufree("relax", "h2.xyz", "--basis", "sto-3g", "--json", "r.json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(Path("r.json").read_text())
    assert result["converged"] and abs(result["energy_ev"]) < 1e-4
    assert Path("h2-relaxed.traj").exists() and Path("h2-relaxed.xyz").exists()
    assert "largest force" in done.stdout


def test_relax_says_when_it_is_not_done() -> None:
    done = taufree("relax", "h2.xyz", "--basis", "sto-3g", "--steps", 1, "--fmax", 1e-4)
    assert done.exit_code == 1
    assert "are left after 1 steps: go on from h2-relaxed.traj" in done.stderr


def test_vibrations() -> None:
    done = taufree("vibrations", "minimum.xyz", "--basis", "sto-3g", "--json", "v.json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(Path("v.json").read_text())
    assert len(result["frequencies_cm"]) == 1 and result["imaginary"] == 0
    moved = taufree("vibrations", "h2.xyz", "--basis", "sto-3g")
    assert moved.exit_code == 1 and "relax the structure first" in moved.stderr


def test_md_goes_on() -> None:
    options = ["--basis", "sto-3g", "--timestep", 0.1, "--json", "md.json"]
    for steps in (3, 6):
        done = taufree("md", "h2.xyz", "--steps", steps, *options)
        assert done.exit_code == 0, done.stderr
        assert json.loads(Path("md.json").read_text())["steps"] == steps
    done = taufree("md", "h2.xyz", "--basis", "sto-3g", "--timestep", 0.2)
    assert done.exit_code == 1 and "another time step" in done.stderr


@pytest.mark.parametrize("ending", ["extxyz", "traj"])
def test_charge_and_moments_of_the_file_are_taken(
    ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And options come first; displacements of one state are not those of another."""
    asked: list[tuple[int, int]] = []
    mean_field = TauFree.mean_field

    def noted(self: TauFree, atoms: Atoms) -> Any:
        mf = mean_field(self, atoms)
        asked.append((mf.mol.charge, mf.mol.spin))
        return mf

    monkeypatch.setattr(TauFree, "mean_field", noted)
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]], magmoms=[1, 0], charges=[0.5, 0.5])
    write(f"cation.{ending}", atoms)
    for options in ([], ["--charge", 0, "--spin", 2], ["--charge", 0, "--spin", 0]):
        done = taufree("vibrations", f"cation.{ending}", "--basis", "sto-3g", *options)
        assert done.exit_code == 0, done.stderr
    assert asked == [(1, 1), (0, 2), (0, 0)]
    assert len(list(Path().glob("cation-vibrations-*"))) == 3
    write(f"cation.{ending}", Atoms("H2", atoms.positions, magmoms=[1, -1]))
    done = taufree("vibrations", f"cation.{ending}", "--basis", "sto-3g")
    assert done.exit_code == 1 and "moments of both signs" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("relax", "none.xyz"), "is not a file"),
        (("relax", "h2.xyz", "--cell"), "has no cell to relax"),
        (("relax", "h2.xyz", "--basis", "no-such"), "no basis 'no-such'"),
        (("relax", "h2.xyz", "--out", "no/such.traj"), "--out no/such.traj: the folder"),
        (("md", "h2.xyz", "--spin", "1"), "cannot have 2S = 1"),
        (("vibrations", "h2.xyz", "--model", "no-such-model"), "no-such-model"),
        (("md", "h2.xyz", "--kpts", "2", "2", "2"), "--kpts"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = taufree(*arguments)
    assert done.exit_code == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
