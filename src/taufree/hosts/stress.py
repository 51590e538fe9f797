"""Stress by differences of energies of strained cells, no more of them than symmetry asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms
from pyscf.pbc.symm import geom

STRAIN = 5e-3
"""Size of a strain, √Σ e_ij²; five times larger than what integral screening blurs, and the third
derivatives of the energy leave 1e-3 of the stress."""
SAME = 1e-6


def strained_stress(
    atoms: Atoms, energy: Callable[[Atoms], float], rotations: np.ndarray | None = None
) -> np.ndarray:
    """(1/V) ∂E/∂ε by central differences, (3, 3), in the energy's unit per Å³.

    Atoms move with the cell, k-points and grids too, for they are given in fractions of it. A
    rotation changes nothing, so the six symmetric strains are enough, and of these the ones that
    ``rotations`` (n, 3, 3), Cartesian, of the crystal onto itself leave as they are: a cubic
    crystal has one.
    """
    stress = np.zeros((3, 3))
    for strain in invariant_strains(np.eye(3)[None] if rotations is None else rotations):
        e = [energy(_strained(atoms, sign * STRAIN * strain)) for sign in (1, -1)]
        stress += (e[0] - e[1]) / (2 * STRAIN) * strain
    return stress / atoms.get_volume()


def invariant_strains(rotations: np.ndarray) -> list[np.ndarray]:
    """Orthonormal basis of the symmetric (3, 3) matrices e with R e Rᵀ = e for all rotations R."""
    unit = np.eye(3)
    six = [(np.outer(a, b) + np.outer(b, a)) / 2 for k, a in enumerate(unit) for b in unit[k:]]
    averages = [np.mean(rotations @ e @ rotations.transpose(0, 2, 1), axis=0) for e in six]
    _, size, rows = np.linalg.svd(np.reshape(averages, (6, 9)))
    return [row.reshape(3, 3) for row in rows[:6][size > SAME]]


def rotations_of(mf: Any) -> np.ndarray:
    """Cartesian rotations (n, 3, 3) that map crystal and k-points onto themselves.

    Of open shells none but the identity: their density may have less symmetry than the nuclei.
    """
    cell, columns = mf.cell, mf.cell.lattice_vectors().T
    if mf.istype("UHF") or mf.istype("KUHF"):
        return np.eye(3)[None]
    k = cell.get_scaled_kpts(np.reshape(getattr(mf.kpts, "kpts", mf.kpts), (-1, 3)))

    def keeps(rotation: np.ndarray) -> bool:
        apart = (k @ rotation)[:, None] - k
        return bool((abs(apart - apart.round()).max(2) < SAME).any(1).all())

    turns = [op.rot for op in geom.search_space_group_ops(cell, tol=1e-4) if keeps(op.rot)]
    return columns @ np.array(turns) @ np.linalg.inv(columns)


def _strained(atoms: Atoms, strain: np.ndarray) -> Atoms:
    new = atoms.copy()
    new.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
    return new
