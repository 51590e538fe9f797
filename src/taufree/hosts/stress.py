"""Stress by differences of energies of strained cells."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ase import Atoms

STRAIN = 5e-3
"""Of the cell vectors; five times larger than what integral screening blurs, and the third
derivatives of the energy leave 1e-3 of the stress."""


def strained_stress(atoms: Atoms, energy: Callable[[Atoms], float]) -> np.ndarray:
    """(1/V) ∂E/∂ε by central differences, (3, 3), in the energy's unit per Å³.

    Atoms move with the cell, k-points and grids too, for they are given in fractions of it. A
    rotation changes nothing, so the six symmetric strains are enough.
    """
    stress = np.zeros((3, 3))
    for i in range(3):
        for j in range(i + 1):
            e = [energy(_strained(atoms, i, j, sign * STRAIN)) for sign in (1, -1)]
            stress[i, j] = stress[j, i] = (e[0] - e[1]) / (2 * STRAIN)
    return stress / atoms.get_volume()


def _strained(atoms: Atoms, i: int, j: int, size: float) -> Atoms:
    strain = np.eye(3)
    strain[i, j] += size / 2
    strain[j, i] += size / 2
    new = atoms.copy()
    new.set_cell(atoms.cell @ strain, scale_atoms=True)
    return new
