"""Geometries beside the parent's: what is compared, and what is kept between runs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.units import Bohr
from rich.console import Console

from networks import random_functional
from taufree.ase import TauFree
from taufree.data.systems import System
from taufree.errors import UserError
from taufree.evaluation import cells, geometry, workers
from taufree.functional import Functional


def printed(table: Any) -> str:
    console = Console(width=120, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def functional() -> Functional:
    return random_functional()


def test_internals() -> None:
    bonds, angles = geometry.internals(molecule("H2O"))
    assert bonds == [(0, 1), (0, 2)] and angles == [(1, 0, 2)]
    bonds, angles = geometry.internals(molecule("CH4"))
    assert len(bonds) == 4 and len(angles) == 6


def stub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """The model's bonds are 0.01 Å longer than the parent's; one molecule fails."""
    done: list[tuple[str, bool]] = []

    def relaxed(system: System, functional: Functional, parent: bool, *options: Any) -> Any:
        done.append((system.name, parent))
        if len(system.symbols) > 2 and parent:
            return {"converged": False, "error": "it broke"}
        with_frequencies = options[-1]
        modes = [1000.0 if parent else 990.0] if with_frequencies else None
        return {
            "converged": True, "steps": 3, "energy_ev": -1.0, "positions_angstrom": [],
            "bonds_angstrom": [1.0 if parent else 1.01], "angles_degree": [],
            "frequencies_cm": modes,
        }  # fmt: skip

    monkeypatch.setattr(geometry, "relaxed", relaxed)
    monkeypatch.setattr(workers, "_on_workers", in_turn)
    return done


def in_turn(work: Any, calls: dict[Any, tuple[Any, ...]], *_: Any) -> Any:
    """Without workers, which would not see what a test has replaced."""
    return ((name, work(*arguments)) for name, arguments in calls.items())


def test_differences_and_what_is_kept(
    functional: Functional, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = stub(monkeypatch)
    result = geometry.evaluate(functional, "train", out=tmp_path, limit=3, frequencies=1)
    found = result["summary"]
    assert found["n_molecules"] == 3 and len(done) == 6
    assert found["mean_bond_angstrom"] == pytest.approx(0.01)
    assert found["n_frequency_cm"] == 1 and found["max_frequency_cm"] == pytest.approx(10)
    assert found["mean_angle_degree"] is None
    assert result["molecules"][0]["name"] in printed(geometry.table(result))
    again = geometry.evaluate(functional, "train", out=tmp_path, limit=3, frequencies=1)
    assert again == result
    assert len(done) == 6 + len(found["not_converged"])  # what failed is tried again


def test_what_did_not_converge_is_named(
    functional: Functional, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(monkeypatch)
    result = geometry.evaluate(functional, "train", names=["H2O", "LiH"])
    assert result["summary"]["not_converged"] == ["H2O"]
    assert "it broke" in printed(geometry.table(result))
    with pytest.raises(UserError, match="no G2 molecule of the train split"):
        geometry.evaluate(functional, "train", names=["H2O2O2"])


def test_a_molecule_is_relaxed() -> None:
    """With a real calculation: H2 from 0.7 Å, of a functional that has learned nothing."""
    smooth = random_functional(roughness=1.0)
    system = System("H2", ("H", "H"), ((0, 0, 0), (0, 0, 0.7 / Bohr)))
    run = geometry.relaxed(
        system, smooth, parent=False, basis="sto-3g", level=0, with_frequencies=True
    )
    assert run["converged"], run
    assert run["bonds_angstrom"][0] == pytest.approx(0.74, abs=0.05)
    assert 3000 < run["frequencies_cm"][0] < 7000


CRYSTAL = {
    "converged": True, "relaxed_angstrom": 5.431, "eos_angstrom": 5.430,
    "difference_angstrom": 0.001, "bulk_modulus_gpa": 97.0,
}  # fmt: skip


def test_cells(functional: Functional, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = bulk("Si", "diamond", a=5.43)
    assert cells._lattice_constant(atoms.get_volume()) == pytest.approx(5.43)

    def crystal(name: str, *_: Any) -> Any:
        return CRYSTAL if name == "Si" else {"converged": False, "error": "it broke"}

    monkeypatch.setattr(cells, "_crystal", crystal)
    monkeypatch.setattr(workers, "_on_workers", in_turn)
    result = cells.evaluate(functional, out=tmp_path)
    assert list(result["crystals"]) == ["Si", "MgO"]
    assert "+0.0010" in printed(cells.table(result)) and "it broke" in printed(cells.table(result))
    with pytest.raises(UserError, match="none of Si, MgO"):
        cells.evaluate(functional, names=["Pu"])


class Spring(TauFree):
    """A cubic crystal whose energy per cell is ½ 9BV₀ (a/4 − 1)², without forces."""

    def calculate(self, atoms: Any = None, properties: Any = (), system_changes: Any = ()) -> None:
        self.atoms = atoms.copy()
        a = np.cbrt(4 * atoms.get_volume())
        strain = a / 4 - 1
        self.results = {
            "energy": 50 * strain**2,
            "stress": 100 * strain * a / 4 / 3 / atoms.get_volume() * np.array([1, 1, 1, 0, 0, 0]),
        }


def test_a_cell_goes_on_where_it_was_interrupted(
    functional: Functional, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "TauFree", Spring)
    monkeypatch.setattr(workers, "_on_workers", in_turn)
    monkeypatch.setitem(cells.CRYSTALS, "MgO", ("rocksalt", 4.1, "def2-svp"))
    options: dict[str, Any] = {"out": tmp_path, "names": ["MgO"]}
    first = cells.evaluate(functional, **options)
    found = first["crystals"]["MgO"]
    assert found["converged"] and found["relaxed_angstrom"] == pytest.approx(4, abs=1e-3)
    assert found["difference_angstrom"] == pytest.approx(0, abs=2e-3)
    monkeypatch.setattr(cells, "_crystal", None)  # it is kept
    assert cells.evaluate(functional, **options) == first
    [trajectory] = tmp_path.glob("*/MgO-*.traj")
    assert trajectory.stat().st_size
