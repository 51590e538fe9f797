"""Energies of reactions from those of their systems; the calculations have tests of their own."""

from __future__ import annotations

import io
from typing import Any

import pytest
from ase.units import Hartree, kcal, mol
from rich.console import Console

from taufree.data.systems import System
from taufree.errors import UserError
from taufree.evaluation import reactions
from taufree.functional import Functional

WATER = "Water_dimer"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Each atom −1 hartree, a dimer −0.01 more; the model is off by 1 mHa in dimers."""
    options: dict[str, Any] = {}

    def converge_all(systems: list[System], functional: Functional, level: int, **_: Any) -> Any:
        options["systems"] = systems
        found = {}
        for system in systems:
            energy = -len(system.symbols) - 0.01 * (system.name == WATER)
            parent = {"converged": True, "energy_hartree": energy, "cycles": 8}
            off = 0.001 if system.name == WATER else 0.0
            model = {"converged": system.name not in options.get("broken", ())}
            found[system, "parent"] = parent
            found[system, "deorbitalized"] = model | {"energy_hartree": energy + off, "cycles": 9}
        return found

    monkeypatch.setattr(reactions, "converge_all", converge_all)
    return options


def test_energies_are_differences_of_systems(functional: Functional, runs: dict[str, Any]) -> None:
    result = reactions.evaluate(functional, ["s22"], names=[WATER])
    (line,) = result["reactions"]
    assert line["parent_kcal"] == pytest.approx(-0.01 * Hartree / (kcal / mol))
    assert line["error_kcal"] == pytest.approx(0.001 * Hartree / (kcal / mol))
    assert result["summary"]["s22"]["compared"] == 1 and not result["counterpoise"]
    assert len(runs["systems"]) == 3
    found = result["summary"]["s22"]
    assert found["converged"] == found["n_systems"] == 3
    assert (found["median_cycles"], found["parent_median_cycles"]) == (9, 8)
    console = Console(file=io.StringIO(), width=120)
    console.print(reactions.table(result))
    assert "Water_dimer" in console.file.getvalue() and "-5.02" in console.file.getvalue()


def test_what_did_not_converge_has_no_energy(functional: Functional, runs: dict[str, Any]) -> None:
    runs["broken"] = (f"{WATER}.1",)
    result = reactions.evaluate(functional, ["s22"], names=[WATER])
    (line,) = result["reactions"]
    assert line["energy_kcal"] is None and line["error_kcal"] is None
    assert result["summary"]["s22"]["mean_error_kcal"] is None
    assert result["summary"]["s22"]["converged"] == 2
    reactions.table(result)


def test_an_atom_that_was_rescued_has_an_energy() -> None:
    atom = System("H", ("H",), ((0.0, 0.0, 0.0),), spin=1)
    reaction = reactions.Reaction("H", "dbh24", ((-1, atom),), 0.0)
    run = {"converged": False, "rescued": True, "energy_hartree": -0.5}
    energy = reactions._energy(reaction, {(atom, "deorbitalized"): run}, "deorbitalized")
    assert energy == pytest.approx(0.5 * Hartree / (kcal / mol))


def test_large_systems_are_left_out_by_name(functional: Functional, runs: dict[str, Any]) -> None:
    result = reactions.evaluate(functional, max_electrons=20)
    assert WATER in {line["name"] for line in result["reactions"]}
    assert "Phenol_dimer" in result["left_out"] and "Phenol_dimer" in str(
        reactions.table(result).caption
    )
    assert all(system.n_electrons <= 20 for system in runs["systems"])


def test_bad_input_is_refused(functional: Functional) -> None:
    with pytest.raises(UserError, match="unknown set 's26': choose from dbh24, s22"):
        reactions.evaluate(functional, ["s26"])
    with pytest.raises(UserError, match="unknown reaction 'water'"):
        reactions.evaluate(functional, names=["water"])
    with pytest.raises(UserError, match="at most 1 electrons"):
        reactions.evaluate(functional, max_electrons=1)
