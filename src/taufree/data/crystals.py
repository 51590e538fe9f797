"""Crystals, each at its equilibrium and at strained volumes; ``crystals.csv`` names the sources.

Elements are those of ``ase.collections.dcdft`` up to Kr with at most four atoms in the primitive
cell, and bcc Li and Na; compounds have the rocksalt, zincblende, fluorite, CsCl and hexagonal BN
structures. k meshes contain Γ, with points at most ``SPACING`` apart along each reciprocal vector;
cells with an odd number of electrons get an even number of points. Metals are smeared. All
volumes of a crystal have the mesh of the first, so that its energies lie on one curve.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.collections import dcdft
from ase.data import atomic_numbers
from ase.geometry import get_distances
from ase.spacegroup import crystal
from ase.units import Bohr
from pyscf.pbc import gto

from taufree.data.systems import Periodicity, System

VOLUMES = (1.0, 0.94, 1.06)
"""Shares of the equilibrium volume."""
COSTLY = ("Ga-alpha", "Br2-crystal")
"""Four heavy atoms in a cell: at equilibrium only."""
SPACING = {"metal": 0.5, "covalent": 0.82, "ionic": 0.82, "layered": 0.82, "molecular": 0.82}
"""Largest distance of k-points, 1/bohr."""
SMEARING = 0.01  # hartree, for metals
BASIS = "def2-svp"
PSEUDO_BASIS, PSEUDO = "gth-dzvp-molopt-sr", "gth-pbe"
OPEN_D = frozenset({"Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni"})
"""Elements whose pseudopotentials leave a semicore and open d shells: all electrons only."""
SAME_POSITION = 1e-3  # ångström


def crystals() -> Iterator[System]:
    """All-electron crystals first at equilibrium, then strained; then with pseudopotentials.

    Those, of elements without open d shells, are Goedecker, Teter and Hutter's, at equilibrium.

    A strained one is named like ``Si-diamond@0.94``, one with pseudopotentials ``Si-diamond-gth``.
    """
    equilibrium = {row["name"]: _equilibrium(row) for row in _table()}
    for share in VOLUMES:
        for name, system in equilibrium.items():
            if share == 1:
                yield system
            elif name not in COSTLY:
                yield at_volume(system, share)
    for system in equilibrium.values():
        if OPEN_D.isdisjoint(system.symbols):
            yield _pseudized(system)


def at_volume(system: System, share: float) -> System:
    """The crystal uniformly strained to ``share`` of its volume."""
    assert system.period is not None
    scale = share ** (1 / 3)
    return replace(
        system,
        name=f"{system.name}@{share:g}",
        positions=_rows(scale * np.array(system.positions)),
        period=replace(system.period, vectors=_rows(scale * np.array(system.period.vectors))),
    )


def bonding() -> dict[str, str]:
    """Bonding (metal, covalent, ionic, layered, molecular) of every crystal by name."""
    return {row["name"]: row["bonding"] for row in _table()}


def lattice_constant(name: str) -> float:
    """Lattice constant a of the table, ångström; of the crystallographer's cell, as in `dcdft`."""
    row = next(row for row in _table() if row["name"] == name)
    return float(row["a"]) if row["a"] else float(dcdft[row["symbols"]].cell.lengths()[0])


def _table() -> list[dict[str, str]]:
    lines = files("taufree.data").joinpath("crystals.csv").read_text("utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def _equilibrium(row: dict[str, str]) -> System:
    atoms = _structure(row)
    metal = row["bonding"] == "metal"
    moments = tuple(atoms.get_initial_magnetic_moments().tolist()) if row["moment"] else ()
    vectors = _rows(atoms.cell.array / Bohr)
    mesh = k_mesh(np.array(vectors), SPACING[row["bonding"]], odd=int(atoms.numbers.sum()) % 2 == 1)
    period = Periodicity(vectors, mesh, smearing=SMEARING if metal else 0.0, moments=moments)
    options: dict[str, Any] = {"kind": "crystals", "basis": BASIS, "spin": 0, "period": period}
    return System.from_ase(row["name"], atoms, **options)


def _pseudized(system: System) -> System:
    assert system.period is not None
    core = 0
    for symbol in system.symbols:
        cell = gto.Cell(atom=f"{symbol} 0 0 0", a=np.eye(3) * 10, spin=None, pseudo=PSEUDO)
        cell.build(basis=PSEUDO_BASIS, verbose=0, dump_input=False)
        core += atomic_numbers[symbol] - int(cell.atom_charge(0))
    period = replace(system.period, pseudo=PSEUDO, core_electrons=core)
    return replace(
        system, name=f"{system.name}-gth", kind="crystals-gth", basis=PSEUDO_BASIS, period=period
    )


def _structure(row: dict[str, str]) -> Atoms:
    if row["structure"] == "dcdft":
        return primitive(dcdft[row["symbols"]])
    a = float(row["a"])
    if row["structure"] == "hexagonal-bn":
        sites = [(1 / 3, 2 / 3, 1 / 4), (1 / 3, 2 / 3, 3 / 4)]
        cell = [a, a, float(row["c"]), 90, 90, 120]
        return crystal(["B", "N"], sites, spacegroup=194, cellpar=cell)
    return bulk(row["symbols"], row["structure"], a=a)


def k_mesh(vectors: np.ndarray, spacing: float, odd: bool = False) -> tuple[int, int, int]:
    """Points along the reciprocal vectors, at most ``spacing`` apart; even numbers if ``odd``.

    With an odd number of electrons in the cell, an odd number of points has no closed shell.
    """
    lengths = 2 * np.pi * np.linalg.norm(np.linalg.inv(vectors), axis=0)
    numbers = [max(1, int(np.ceil(length / spacing))) for length in lengths]
    first, second, third = (n + n % 2 if odd else n for n in numbers)
    return first, second, third


def primitive(atoms: Atoms) -> Atoms:
    """The smallest cell of a crystal: its lattice vectors are all translations that leave it as is.

    Magnetic moments tell atoms of one element apart.
    """
    kinds = np.stack([atoms.numbers, atoms.get_initial_magnetic_moments()], axis=1)
    steps = [
        atoms.positions[i] - atoms.positions[0]
        for i in range(len(atoms))
        if np.allclose(kinds[i], kinds[0]) and _is_translation(atoms, kinds, i)
    ]
    if len(steps) == 1:
        return atoms.copy()
    volume = atoms.get_volume() / len(steps)
    shifts = np.array(list(itertools.product((-1, 0, 1), repeat=3))) @ atoms.cell.array
    candidates = np.array([step + shift for step in steps for shift in shifts])
    lengths = np.linalg.norm(candidates, axis=1)
    order = [i for i in np.argsort(lengths.round(6), kind="stable") if lengths[i] > SAME_POSITION]
    shortest = candidates[order][:60]
    vectors = next(
        np.array(three)
        for three in itertools.combinations(shortest, 3)
        if abs(np.linalg.det(three) - volume) < 1e-3 * volume
    )
    distances = get_distances(atoms.positions, cell=vectors, pbc=True)[1]
    first = [i for i in range(len(atoms)) if (distances[i, :i] > SAME_POSITION).all()]
    found = atoms[first]
    found.set_cell(vectors)
    found.wrap()
    return found


def _is_translation(atoms: Atoms, kinds: np.ndarray, i: int) -> bool:
    """Whether moving atom 0 to atom i moves every atom onto one of its kind."""
    moved = atoms.positions + atoms.positions[i] - atoms.positions[0]
    distances = get_distances(moved, atoms.positions, atoms.cell, True)[1]
    onto = distances.argmin(axis=1)
    near = distances.min(axis=1) < SAME_POSITION
    return bool(near.all() and np.allclose(kinds[onto], kinds))


def _rows(array: np.ndarray) -> tuple[tuple[float, float, float], ...]:
    return tuple((x, y, z) for x, y, z in array.tolist())
