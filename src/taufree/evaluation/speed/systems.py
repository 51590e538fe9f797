"""Molecules of any size, and crystals, made in code, so that a benchmark is the same everywhere."""

from __future__ import annotations

import itertools
import math

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from numpy.typing import NDArray

CC, CH, CHAIN_ANGLE = 1.53, 1.09, math.radians(112.0)
OH, HOH, SPACING = 0.9572, math.radians(104.52), 3.1  # 3.1 Å: the density of liquid water
HCH = math.radians(107.0)

Vector = NDArray[np.float64]


def benzene() -> Atoms:
    """C6H6 at its G2 geometry."""
    return molecule("C6H6")


def alkane(n_carbon: int) -> Atoms:
    """All-trans CnH2n+2 along x, 3n + 2 atoms, positions in ångström."""
    step = CC * math.sin(CHAIN_ANGLE / 2)
    rise = CC * math.cos(CHAIN_ANGLE / 2) / 2
    chain = np.array([(i * step, 0.0, rise * (-1) ** i) for i in range(-1, n_carbon + 1)])
    symbols, positions = [], []
    for i in range(1, n_carbon + 1):
        outward = np.array([0.0, 0.0, math.copysign(1.0, chain[i, 2])])
        sideways = np.array([0.0, math.tan(HCH / 2), 0.0])
        symbols += ["C", "H", "H"]
        positions.append(chain[i])
        positions += [_along(chain[i], outward + side, CH) for side in (sideways, -sideways)]
    for end, beyond in ((1, 0), (-2, -1)):  # the missing neighbours of the ends are hydrogens
        symbols.append("H")
        positions.append(_along(chain[end], chain[beyond] - chain[end], CH))
    return Atoms(symbols, positions)


def water_cluster(n_molecules: int) -> Atoms:
    """The waters of a cubic lattice nearest to its origin, 3n atoms, positions in ångström.

    Molecules form chains along z, dipoles head to tail; neighbouring chains are antiparallel, and
    molecules turn by 90° along a chain. No liquid, but its density and closed-shell gap.
    """
    n = math.ceil(n_molecules ** (1 / 3))
    sites = itertools.product(range(-n, n + 1), repeat=3)
    nearest = sorted(sites, key=lambda s: (s[0] ** 2 + s[1] ** 2 + s[2] ** 2, s))[:n_molecules]
    positions: list[Vector] = []
    for i, j, k in nearest:
        oxygen = SPACING * np.array([i, j, k], dtype=float)
        dipole = np.array([0.0, 0.0, (-1.0) ** (i + j)])
        plane = np.array([1.0, 0.0, 0.0] if (i + j + k) % 2 else [0.0, 1.0, 0.0])
        sideways = math.tan(HOH / 2) * plane
        positions += [oxygen, *(_along(oxygen, dipole + s, OH) for s in (sideways, -sideways))]
    return Atoms(["O", "H", "H"] * n_molecules, positions)


def _along(start: Vector, direction: Vector, length: float) -> Vector:
    return start + length * direction / np.linalg.norm(direction)


FAMILIES = {"alkane": alkane, "water": water_cluster}
"""Families of molecules of growing size, by name: size -> Atoms."""


CRYSTALS = {
    "Si": (bulk("Si"), "gth-dzvp-molopt-sr"),
    "MgO": (bulk("MgO", "rocksalt", 4.212), "def2-svp"),
    "Al": (bulk("Al"), "gth-dzvp-molopt-sr"),
}
"""A semiconductor, an insulator, a metal (ASE's lattice constants, MgO: Wyckoff 1963), and a basis;
MgO is all-electron, for its semicore pseudopotentials need a uniform grid of 100³ points."""


def family_member(name: str, n_atoms: int) -> Atoms:
    """The member of a family that has ``n_atoms`` atoms or the next one above."""
    size = math.ceil((n_atoms - 2) / 3) if name == "alkane" else math.ceil(n_atoms / 3)
    return FAMILIES[name](max(size, 1))
