from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.collections import dcdft
from ase.units import Bohr

from taufree.data.crystals import COSTLY, SPACING, VOLUMES, bonding, k_mesh, primitive
from taufree.data.systems import System, registry

SAME = 1e-9
CRYSTALS = {s.name: s for s in registry().values() if s.period}


def volume(system: System) -> float:
    assert system.period
    return float(abs(np.linalg.det(system.period.vectors)))


def test_every_crystal_comes_at_each_volume_with_one_mesh() -> None:
    for name in bonding().keys() - set(COSTLY):
        equilibrium = CRYSTALS[name]
        for share in VOLUMES[1:]:
            strained = CRYSTALS[f"{name}@{share:g}"]
            assert volume(strained) == pytest.approx(share * volume(equilibrium), rel=SAME)
            assert strained.period and equilibrium.period
            assert strained.period.mesh == equilibrium.period.mesh
            assert strained.formula == equilibrium.formula


def test_elements_have_the_volumes_of_dcdft_in_at_most_four_atoms() -> None:
    for name, system in CRYSTALS.items():
        if system.kind == "crystals":
            assert len(system.symbols) <= 4, name
    for name in ("Si-diamond", "Al-fcc", "Ga-alpha", "Se-trigonal"):
        system = CRYSTALS[name]
        per_atom = volume(system) * Bohr**3 / len(system.symbols)
        reference = dcdft[system.symbols[0]]
        assert per_atom == pytest.approx(reference.get_volume() / len(reference), rel=1e-6)


@pytest.mark.parametrize(
    ("atoms", "n_atoms"),
    [
        (bulk("Si", cubic=True), 2),
        (bulk("NaCl", "rocksalt", a=5.64, cubic=True), 2),
        (bulk("Mg") * (2, 1, 3), 2),
        (bulk("Al"), 1),
        (dcdft["Fe"], 1),
        (dcdft["Cr"], 2),  # antiferromagnetic
    ],
)
def test_primitive_cell_holds_the_same_crystal(atoms: Atoms, n_atoms: int) -> None:
    found = primitive(atoms)
    assert len(found) == n_atoms
    assert found.get_volume() / n_atoms == pytest.approx(atoms.get_volume() / len(atoms), rel=SAME)
    assert found.get_chemical_formula("reduce") or found.symbols
    shortest = [a.get_all_distances(mic=True) for a in (found * 3, atoms * 3)]
    shortest = [d[d > 0].min() for d in shortest]
    assert shortest[0] == pytest.approx(shortest[1])


def test_mesh_keeps_to_its_spacing_and_odd_electrons_get_even_numbers() -> None:
    vectors = np.diag([5.0, 10.0, 30.0])
    mesh = np.array(k_mesh(vectors, SPACING["metal"]))
    assert np.all(2 * np.pi / np.diag(vectors) / mesh <= SPACING["metal"])
    assert mesh.tolist() == [3, 2, 1]
    assert k_mesh(vectors, SPACING["metal"], odd=True) == (4, 2, 2)
    for system in CRYSTALS.values():
        assert system.period
        # PySCF would give one electron more to smeared closed shells of an odd total number
        assert system.n_electrons * np.prod(system.period.mesh) % 2 == 0, system.name


def test_pseudopotentials_leave_the_valence() -> None:
    valence = {"C-diamond": 8, "Si-diamond": 8, "Al-fcc": 3, "MgO-rocksalt": 8 + 8}
    pseudized = [name for name in CRYSTALS if name.endswith("-gth")]
    assert len(pseudized) > 60
    for name in pseudized:
        system, whole = CRYSTALS[name], CRYSTALS[name.removesuffix("-gth")]
        light = {"H", "He", "Li", "Be"}.issuperset(system.symbols)  # nothing to stand for
        assert 0 < system.n_electrons < whole.n_electrons or light
        assert system.n_electrons == valence.get(whole.name, system.n_electrons)
