"""Barrier heights and interaction energies: what they are made of."""

from __future__ import annotations

import pytest

from taufree.data.generate import mean_field
from taufree.data.reactions import SETS, reactions


@pytest.mark.parametrize("collection", SETS)
def test_nothing_is_lost_or_charged_on_the_way(collection: str) -> None:
    found = reactions(collection, "def2-svp", "R2SCAN")
    assert len(found) == {"dbh24": 24, "s22": 22}[collection]
    assert len({r.name for r in found}) == len(found)
    for reaction in found:
        for kept in ("n_electrons", "charge"):
            assert sum(c * getattr(system, kept) for c, system in reaction.terms) == 0
        atoms = sum(c * sum(system.numbers) for c, system in reaction.terms)
        assert atoms == 0 and reaction.terms[0][0] == 1
        for _, system in reaction.terms:
            assert (system.n_electrons - system.spin) % 2 == 0
            assert (system.basis, system.parent) == ("def2-svp", "R2SCAN")


def test_published_energies_are_in_kcal_per_mol() -> None:
    heights = {r.name: r.reference_kcal for r in reactions("dbh24", "sto-3g", "MS2")}
    assert heights["H_N2O__OH_N2 forward"] == 17.13
    (water,) = [r for r in reactions("s22", "sto-3g", "MS2") if r.name == "Water_dimer"]
    assert water.reference_kcal == pytest.approx(-5.02, abs=0.005)
    assert [system.formula for _, system in water.terms] == ["H4O2", "H2O", "H2O"]


@pytest.mark.parametrize("collection", SETS)
def test_every_system_can_be_set_up(collection: str) -> None:
    """Their formulas are in no split."""
    for reaction in reactions(collection, "sto-3g", "MS2"):
        for _, system in reaction.terms:
            assert mean_field(system).grids.level == 3  # PySCF's default
