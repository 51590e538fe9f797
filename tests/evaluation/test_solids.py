from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.eos import birchmurnaghan
from ase.units import Hartree
from rich.console import Console
from typer.testing import CliRunner

from networks import random_functional
from taufree.cli import app
from taufree.data.crystals import lattice_constant
from taufree.data.systems import System, registry
from taufree.errors import UserError
from taufree.evaluation import plots, self_consistent, solids
from taufree.evaluation.self_consistent import Run, Task, converge
from taufree.evaluation.solids import free_atoms, points

BULK, DERIVATIVE, COHESION = 0.003, 4.0, 0.2  # atomic units; the last per atom
FREE_ATOM = -1.0


def made_up(crystal: System, stretch: float, bulk: float) -> dict[str, Run]:
    """Runs on a curve with its minimum at a volume ``stretch`` times the table's."""
    volume = stretch * solids._volume(crystal)
    minimum = len(crystal.symbols) * (FREE_ATOM - COHESION)
    runs: dict[str, Run] = {a.name: {"energy_hartree": FREE_ATOM} for a in free_atoms(crystal)}
    for point in points(crystal):
        energy = birchmurnaghan(solids._volume(point), minimum, bulk, DERIVATIVE, volume)
        runs[point.name] = {"energy_hartree": energy, "gap_ev": 6.0 * stretch, "moment": 0.0}
    return {name: {"converged": True, "cycles": 8, "wall_s": 1.0, **r} for name, r in runs.items()}


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two crystals: in one the model's volume is 3% larger, in the other a point fails."""
    crystals = [registry()["Si-diamond"], registry()["LiF-rocksalt"]]

    def converge_all(systems: set[System], *_: Any, **__: Any) -> dict[Task, Run]:
        runs: dict[Task, Run] = {}
        for crystal in crystals:
            theirs, ours = made_up(crystal, 0.96, BULK), made_up(crystal, 0.96 * 1.03, 1.1 * BULK)
            for system in [*points(crystal), *free_atoms(crystal)]:
                runs[system, "parent"] = theirs[system.name]
                runs[system, "deorbitalized"] = ours[system.name]
        runs[points(crystals[1])[0], "deorbitalized"] = self_consistent.failed(ValueError("no"))
        assert set(systems) == {system for system, _ in runs}
        return runs

    monkeypatch.setattr(solids, "converge_all", converge_all)
    return solids.evaluate(random_functional(), systems=crystals)


def test_curves_give_back_what_they_were_made_of(result: dict[str, Any]) -> None:
    silicon, _ = result["crystals"]
    a = lattice_constant("Si-diamond")
    assert a == pytest.approx(5.47, abs=0.01)  # ase.collections.dcdft, the cubic cell
    parent = silicon["parent"]
    assert parent["lattice_constant_angstrom"] == pytest.approx(a * 0.96 ** (1 / 3), rel=1e-5)
    assert parent["cohesive_ev"] == pytest.approx(COHESION * Hartree, rel=1e-5)
    assert silicon["d_lattice_constant_angstrom"] == pytest.approx(
        a * 0.96 ** (1 / 3) * (1.03 ** (1 / 3) - 1), rel=1e-3
    )
    assert silicon["d_bulk_modulus_percent"] == pytest.approx(10, rel=1e-3)
    assert silicon["d_cohesive_ev"] == pytest.approx(0, abs=1e-4)
    assert silicon["d_gap_ev"] == pytest.approx(6 * 0.96 * 0.03)
    assert silicon["d_moment"] is None
    assert silicon["delta_mev"] > 1


def test_a_point_that_fails_is_reported_and_compares_nothing(result: dict[str, Any]) -> None:
    _, fluoride = result["crystals"]
    assert fluoride["delta_mev"] is None
    assert fluoride["deorbitalized"]["points"][0]["error"] == "ValueError: no"
    found = result["summary"]
    assert (found["n_points"], found["converged"], found["parent_converged"]) == (10, 9, 10)
    assert found["not_converged"] == ["LiF-rocksalt"]
    assert found["worst_delta_mev"] == "Si-diamond"


def test_table_and_plot_show_every_crystal(result: dict[str, Any], tmp_path: Path) -> None:
    with (console := Console(width=160)).capture() as capture:
        console.print(solids.table(result))
    text = capture.get()
    for shown in ("Si-diamond", "LiF-rocksalt", "NO / 8", "9 of 10 points"):
        assert shown in text
    plots.plot_solids(result, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_command_passes_its_options_on(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def stub(model: str, split: str, **options: Any) -> dict[str, Any]:
        asked.update(options, model=model, split=split)
        return result

    monkeypatch.setattr(solids, "evaluate", stub)
    monkeypatch.chdir(tmp_path)
    options = ["--name", "Si-diamond", "--workers", "1", "--json", "s.json", "--plot", "s.svg"]
    done = CliRunner().invoke(app, ["evaluate", "solids", "kept", *options])
    assert done.exit_code == 0, done.stderr
    assert (asked["out"], asked["workers"], asked["split"]) == (Path("kept"), 1, "test")
    assert [system.name for system in asked["systems"]] == ["Si-diamond"]
    assert json.loads(Path("s.json").read_text())["summary"]["n_crystals"] == 2
    assert "Si-diamond" in done.stdout and Path("s.svg").stat().st_size > 0


def test_free_atoms_are_spin_polarized_in_the_whole_basis() -> None:
    [carbon] = free_atoms(registry()["C-diamond"])
    assert (carbon.spin, carbon.basis) == (2, registry()["C-diamond"].basis)
    assert [a.name for a in free_atoms(registry()["LiF-rocksalt"])] == ["F", "Li"]


def test_only_crystals_are_taken() -> None:
    for wrong in ("H2O", "Si-diamond-gth", "Si-diamond@0.94"):
        with pytest.raises(UserError, match="no all-electron crystal"):
            solids.evaluate(random_functional(), systems=[registry()[wrong]])


def test_both_functionals_use_the_kept_integrals(tmp_path: Path) -> None:
    helium = registry()["He-hcp"]
    assert helium.period
    helium = replace(helium, period=replace(helium.period, mesh=(1, 1, 1)))
    first = converge(helium, None, 0, tmp_path)
    [kept] = tmp_path.iterdir()
    stamp = kept.stat().st_mtime_ns
    again = converge(helium, None, 0, tmp_path)
    assert again["energy_hartree"] == pytest.approx(first["energy_hartree"], abs=1e-10)
    assert converge(helium, None, 0)["energy_hartree"] == pytest.approx(first["energy_hartree"])
    ours = converge(helium, random_functional(roughness=1.0), 0, tmp_path)
    assert ours["converged"]
    assert np.isfinite(ours["energy_hartree"])
    assert ours["gap_ev"] > 5
    assert [kept] == list(tmp_path.iterdir())
    assert kept.stat().st_mtime_ns == stamp
