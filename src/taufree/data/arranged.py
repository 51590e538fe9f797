"""Geometries made from those of g2 molecules: twisted, parted, in mid-transfer, side by side.

All by chance, with seeds of their names, and none a copy of what evaluations measure: formulas of
the transition states of DBH24 are left out, pairs of two molecules that S22 holds, and what is in
the test split.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator

import numpy as np
from ase import Atoms
from ase.collections import g2
from ase.data import covalent_radii, dbh24, vdw_radii
from ase.neighborlist import build_neighbor_list, natural_cutoffs
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from taufree.data.systems import DEFAULT, MOST_ELECTRONS, SMALL, System, g2_systems

Array = NDArray[np.float64]

STRAIGHT = 0.1  # square ångström: an area, of a bond and the atoms beside it
TWISTS = (25.0, 95.0)  # degrees, of one half of a molecule against the other
PARTINGS = (1.2, 1.8)  # of the bond length
TRANSFERS = (1.05, 1.5)  # of the sum of covalent radii
CONTACTS = (0.7, 1.0)  # of the sum of van der Waals radii, between the two closest atoms
DONORS = ("H2", "CH4", "NH3", "H2O", "HF", "SiH4", "PH3", "SH2", "HCl")
CARRIED = ("H", "F", "Cl")
PARTNERS = (
    "H2O", "NH3", "CH4", "HF", "HCl", "SH2", "PH3", "SiH4", "H2", "N2", "CO2", "HCN", "C2H6",
    "CH3OH", "HCOOH", "CH3SH", "F2", "H2CF2", "CF4", "C3H4_C3v", "C4H4NH", "C5H5N",
    "He", "Ne", "Ar",
)  # fmt: skip
N_PAIRS = 80
IN_S22 = {"H2O", "NH3", "CH4", "HCOOH", "HCN"}


def arranged() -> Iterator[System]:
    """Every system of the kinds ``twisted``, ``parted``, ``transfers`` and ``pairs``."""
    from taufree.data.splits import split_of, splits  # which build on this module

    for system in g2_systems():
        if split_of(system.formula) == "train" and system.n_electrons <= MOST_ELECTRONS:
            yield from _twisted(system.name)
            yield from _parted(system.name)
    for system in (*_transfers(), *_pairs()):
        if system.formula not in splits()["test"]:  # NH3+CO2 has that of nitromethane
            yield system


def _twisted(name: str) -> Iterator[System]:
    """The molecule turned about each of its bonds, unless one side is a straight line."""
    for i, j, far in bridges(g2[name]):
        atoms, key = g2[name].copy(), f"{name}@twist{i}-{j}"
        axis = atoms.positions[j] - atoms.positions[i]
        off = np.linalg.norm(np.cross(atoms.positions - atoms.positions[i], axis), axis=1)
        if all(np.any(off[side] > STRAIGHT) for side in (far, ~far)):
            part = atoms[far]
            part.rotate(_chance(key).uniform(*TWISTS), axis, center=atoms.positions[j])
            atoms.positions[far] = part.positions
            yield System.from_ase(key, atoms, kind="twisted")


def _parted(name: str) -> Iterator[System]:
    """The molecule with one of its bonds lengthened."""
    bonds = list(bridges(g2[name]))
    if bonds:
        rng = _chance(f"{name}@parted")
        i, j, far = bonds[rng.integers(len(bonds))]
        atoms = g2[name].copy()
        axis = atoms.positions[j] - atoms.positions[i]
        atoms.positions[far] += (rng.uniform(*PARTINGS) - 1) * axis
        yield System.from_ase(f"{name}@parted{i}-{j}", atoms, kind="parted")


def _transfers() -> Iterator[System]:
    """A–X–B: an atom X halfway between two radicals, as in the transition state of its transfer."""
    barriers = (entry["tst"] for entry in dbh24.dbh24_reaction_list.values())
    held_out = {dbh24.create_dbh24_system(name).get_chemical_formula() for name in barriers}
    for donor, acceptor in itertools.combinations_with_replacement(DONORS, 2):
        for carried in CARRIED:
            key = f"{donor}-{carried}-{acceptor}"
            rng = _chance(key)
            left, right = (
                _radical(name, carried, rng.uniform(*TRANSFERS)) for name in (donor, acceptor)
            )
            right.positions *= (1, -1, -1)  # turned about x: on the other side of X
            right.rotate(rng.uniform(0, 360), "z", center=(0, 0, 0))
            atoms = Atoms(carried, [(0, 0, 0)]) + left + right
            if atoms.get_chemical_formula() not in held_out:
                yield System.from_ase(key, atoms, kind="transfers", spin=1)


def _pairs() -> Iterator[System]:
    """Two molecules, turned at random, in contact; one in three in the smaller basis."""
    chosen = list(itertools.combinations_with_replacement(PARTNERS, 2))
    chosen = [pair for pair in chosen if not set(pair) <= IN_S22]
    order = _chance("pairs").permutation(len(chosen))[:N_PAIRS]
    for rank, (one, other) in enumerate(chosen[k] for k in sorted(order)):
        key = f"{one}+{other}"
        rng = _chance(key)
        left, right = (_turned(name, rng) for name in (one, other))
        direction = np.array([0.0, 0.0, 1.0])
        right.positions += direction * _contact(left, right, direction, rng.uniform(*CONTACTS))
        basis = SMALL if rank % 3 == 0 else DEFAULT
        yield System.from_ase(key, left + right, kind="pairs", basis=basis)


def bridges(atoms: Atoms) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    """Bonds i–j that alone hold a molecule together; which atoms stand on the side of j."""
    neighbors = build_neighbor_list(atoms, natural_cutoffs(atoms), self_interaction=False)
    bonds = neighbors.get_connectivity_matrix().toarray()
    whole = connected_components(bonds, directed=False)[0]
    for i, j in zip(*np.nonzero(np.triu(bonds)), strict=True):
        cut = bonds.copy()
        cut[i, j] = 0
        n_parts, part = connected_components(cut, directed=False)
        if n_parts > whole:
            yield int(i), int(j), part == part[j]


def _radical(hydride: str, carried: str, factor: float) -> Atoms:
    """A hydride less its last hydrogen atom, at z > 0; the atom carried, at 0, is in its place."""
    atoms = g2[hydride].copy()
    heavy = int(np.argmax(atoms.numbers))
    gone = max(k for k, symbol in enumerate(atoms.symbols) if symbol == "H" and k != heavy)
    atoms.positions -= atoms.positions[heavy]
    atoms.rotate(atoms.positions[gone], (0, 0, -1))
    symbol, carrier = atoms.numbers[heavy], Atoms(carried).numbers[0]
    del atoms[gone]
    atoms.positions[:, 2] += factor * (covalent_radii[symbol] + covalent_radii[carrier])
    return atoms


def _turned(name: str, rng: np.random.Generator) -> Atoms:
    """A molecule, or an atom, about its center in a random orientation."""
    atoms = g2[name].copy() if name in g2.names else Atoms(name)
    atoms.positions -= atoms.positions.mean(0)
    atoms.euler_rotate(*rng.uniform(0, 360, 3))
    return atoms


def _contact(left: Atoms, right: Atoms, direction: Array, factor: float) -> float:
    """How far ``right`` is to be moved so that no two atoms are nearer than ``factor`` allows.

    The larger root d of |Δ + d u|² = R² is the distance of each two atoms in touch.
    """
    apart = right.positions[None] - left.positions[:, None]
    radii = factor * (vdw_radii[left.numbers][:, None] + vdw_radii[right.numbers][None])
    along = apart @ direction
    square = along**2 - (apart**2).sum(-1) + radii**2
    return float((np.sqrt(square[square > 0]) - along[square > 0]).max())


def _chance(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))
