from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from ase import Atoms
from ase.collections import g2
from ase.data import dbh24, vdw_radii
from ase.geometry import get_distances
from ase.units import Bohr

from taufree.data.arranged import CONTACTS, IN_S22, PARTINGS, bridges
from taufree.data.splits import split_of
from taufree.data.systems import System, registry

SYSTEMS = {
    kind: [s for s in registry().values() if s.kind == kind]
    for kind in ("twisted", "parted", "transfers", "pairs")
}


def distances(system: System) -> np.ndarray:
    return np.asarray(get_distances(np.array(system.positions) * Bohr)[1])


def unmoved(name: str) -> np.ndarray:
    return np.asarray(g2[name.split("@")[0]].get_all_distances())


def test_bridges_are_bonds_outside_rings() -> None:
    bonds = [(i, j, set(np.flatnonzero(far))) for i, j, far in bridges(g2["CH3OH"])]
    carbon, oxygen = (g2["CH3OH"].symbols.indices()[s][0] for s in "CO")
    assert len(bonds) == 5
    halves = next(far for i, j, far in bonds if {i, j} == {carbon, oxygen})
    assert len(halves) in (2, 4)
    pyrrole = [min(far.sum(), (~far).sum()) for _, _, far in bridges(g2["C4H4NH"])]
    assert pyrrole == [1] * 5


@pytest.mark.parametrize("system", SYSTEMS["twisted"], ids=lambda s: s.name)
def test_a_twist_turns_one_rigid_part_and_keeps_every_bond(system: System) -> None:
    before, after = unmoved(system.name), distances(system)
    moved = np.abs(after - before) > 1e-6
    assert moved.any()
    i, j = map(int, system.name.split("@twist")[1].split("-"))
    far = next(far for a, b, far in bridges(g2[system.name.split("@")[0]]) if (a, b) == (i, j))
    assert not moved[np.ix_(far, far)].any()
    assert not moved[np.ix_(~far, ~far)].any()
    assert not moved[i].any()
    assert not moved[j].any()


@pytest.mark.parametrize("system", SYSTEMS["parted"], ids=lambda s: s.name)
def test_parting_lengthens_one_bond_and_no_other(system: System) -> None:
    before, after = unmoved(system.name), distances(system)
    i, j = map(int, system.name.split("@parted")[1].split("-"))
    assert PARTINGS[0] <= after[i, j] / before[i, j] <= PARTINGS[1]
    bonds = {(a, b) for a, b, _ in bridges(g2[system.name.split("@")[0]])} - {(i, j)}
    assert all(after[bond] == pytest.approx(before[bond]) for bond in bonds)


@pytest.mark.parametrize("system", SYSTEMS["transfers"], ids=lambda s: s.name)
def test_a_transferred_atom_stands_between_two_radicals(system: System) -> None:
    away = np.array(system.positions[1:]) - system.positions[0]
    left, right = (away[away[:, 2] * side > 0] for side in (1, -1))
    assert len(left) + len(right) == len(away)  # each radical on its side
    assert np.any(np.linalg.norm(away[:, :2], axis=1) < 1e-9)  # their bonds to it are along z
    assert system.spin == 1
    assert system.n_electrons % 2 == 1


@pytest.mark.parametrize("system", SYSTEMS["pairs"], ids=lambda s: s.name)
def test_two_molecules_are_in_contact_and_intact(system: System) -> None:
    one, other = (len(g2[n]) if n in g2.names else 1 for n in system.name.split("+"))
    assert one + other == len(system.symbols)
    radii = vdw_radii[list(system.numbers)]
    relative = (distances(system) / (radii[:, None] + radii))[:one, one:]
    assert CONTACTS[0] - 1e-9 <= relative.min() <= CONTACTS[1] + 1e-9


def test_nothing_of_the_evaluations_is_learned() -> None:
    arranged = [system for systems in SYSTEMS.values() for system in systems]
    barriers = (entry["tst"] for entry in dbh24.dbh24_reaction_list.values())
    saddles = {dbh24.create_dbh24_system(name).get_chemical_formula() for name in barriers}
    assert not saddles & {Atoms(s.symbols).get_chemical_formula() for s in SYSTEMS["transfers"]}
    monomers = [set(name.split("+")) for name in (s.name for s in SYSTEMS["pairs"])]
    assert not any(pair <= IN_S22 for pair in monomers)
    counts = Counter(split_of(system.formula) for system in arranged)
    assert counts["train"] > 10 * counts["validation"] > 0
    assert not counts["test"]
