from __future__ import annotations

import json
from importlib.resources import files

import pytest
from ase.collections import g2
from ase.formula import Formula

from taufree.data.crystals import bonding
from taufree.data.splits import split_of, systems_of
from taufree.data.systems import registry
from taufree.errors import UserError

PROTOTYPE = ("LiF", "CO", "S", "P2", "PH2", "CH", "C2H2", "Na2")
PERTURBED = ("stretched", "distorted", "fields")


def test_splits_are_disjoint_and_cover_the_registry_exactly() -> None:
    splits = json.loads(files("taufree.data").joinpath("splits.json").read_text("utf-8"))
    formulas = [formula for listed in splits.values() for formula in listed]
    assert len(formulas) == len(set(formulas))
    assert set(formulas) == {system.formula for system in registry().values()}
    assert all(split_of(formula) == split for split in splits for formula in splits[split])


def test_prototype_systems_and_25_more_of_g2_are_tested() -> None:
    tested = {system.name for system in systems_of("test")} & set(g2.names)
    assert set(PROTOTYPE) < tested
    assert len(tested - set(PROTOTYPE)) >= 25


def test_isomers_and_spin_states_stay_together() -> None:
    assert {split_of(registry()[name].formula) for name in ("bicyclobutane", "butadiene")} == {
        "test"
    }
    assert split_of(registry()["CH2_s1A1d"].formula) == split_of(registry()["CH2_s3B1d"].formula)


@pytest.mark.parametrize("kind", PERTURBED)
def test_variants_are_of_training_formulas_only(kind: str) -> None:
    variants = [system for system in registry().values() if system.kind == kind]
    assert {split_of(system.formula) for system in variants} == {"train"}


def test_the_small_basis_has_every_split() -> None:
    small = {split_of(s.formula) for s in registry().values() if s.kind == "small"}
    assert small == {"train", "validation", "test"}


def test_a_compound_s_crystal_and_molecule_stay_together() -> None:
    of_molecule = {
        Formula(system.formula).reduce()[0].format("hill"): split_of(system.formula)
        for system in registry().values()
        if not system.period and not system.charge
    }
    for system in registry().values():
        composition = system.formula.removesuffix("(s)")
        if system.period and len(set(system.symbols)) > 1 and composition in of_molecule:
            assert split_of(system.formula) == of_molecule[composition], system.name


def test_tested_crystals_cover_every_bonding() -> None:
    tested = {s.name for s in systems_of("test") if s.kind == "crystals"} & set(bonding())
    assert len(tested) >= 12
    assert {bonding()[name] for name in tested} == set(bonding().values())


def test_every_element_of_the_test_split_is_trained_on() -> None:
    trained = {z for system in systems_of("train") for z in system.numbers}
    assert {z for system in systems_of("test") for z in system.numbers} <= trained


def test_unknown_formula_is_refused() -> None:
    with pytest.raises(UserError, match="Xe2"):
        split_of("Xe2")
