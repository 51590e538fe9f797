from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from ase import Atoms
from ase.data import ground_state_magnetic_moments
from ase.data.s22 import create_s22_system, s22
from ase.formula import Formula
from ase.geometry import get_distances

from taufree.data.systems import FIELD, KINDS, System, registry

SHORTEST_BOND = 1.2  # bohr: H2 compressed to 90%


def test_every_kind_has_systems_and_g2_is_complete() -> None:
    kinds = Counter(system.kind for system in registry().values())
    assert set(kinds) == set(KINDS)
    assert kinds["g2"] == 162


def test_neutral_atoms_are_complete_up_to_krypton_with_hund_spins() -> None:
    atoms = {
        system.numbers[0]: system.spin
        for system in registry().values()
        if len(system.symbols) == 1 and system.charge == 0 and not system.period
    }
    assert atoms == {z: int(ground_state_magnetic_moments[z]) for z in range(1, 37)}
    assert atoms[24] == 6  # Cr 3d⁵4s¹
    assert atoms[29] == 1  # Cu 3d¹⁰4s¹


@pytest.mark.parametrize("system", registry().values(), ids=lambda system: system.name)
def test_spin_fits_the_number_of_electrons_and_no_nuclei_collide(system: System) -> None:
    assert system.period or (system.n_electrons - system.spin) % 2 == 0
    cell = system.period.vectors if system.period else None
    distances = get_distances(system.positions, cell=cell, pbc=cell and True)[1]
    assert np.all(distances[np.triu_indices(len(distances), 1)] > SHORTEST_BOND)


def test_formula_carries_the_charge() -> None:
    names = ("SH2", "Na+", "Mg+2", "OH-", "NH4+")
    assert [registry()[name].formula for name in names] == ["H2S", "Na+", "Mg+2", "HO-", "H4N+"]


def test_stretching_scales_every_distance() -> None:
    scaled = np.array(registry()["CO2@1.15"].positions)
    np.testing.assert_allclose(scaled, 1.15 * np.array(registry()["CO2"].positions), rtol=1e-14)


def test_fields_are_weak_and_along_no_axis() -> None:
    for system in registry().values():
        if system.kind == "fields":
            assert np.linalg.norm(system.field) == pytest.approx(FIELD)
            assert np.all(np.abs(system.field) > 0.1 * FIELD)


def test_no_dimer_is_in_the_s22_evaluation_set() -> None:
    evaluated = {create_s22_system(name).get_chemical_formula("hill") for name in s22}
    dimers = {system.formula for system in registry().values() if system.kind == "dimers"}
    assert not dimers & evaluated


def test_from_ase_takes_the_spin_from_the_magnetic_moments() -> None:
    system = System.from_ase("O2", Atoms("O2", [[0, 0, 0], [0, 0, 1.2]], magmoms=[1.0, 1.0]))
    assert system.spin == 2
    assert Formula(system.formula).count() == {"O": 2}
