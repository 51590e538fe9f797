"""Atomic orbitals on a grid, block by block: densities from them, matrices into them.

In a block of neighbouring points most orbitals of a large molecule vanish. Those that do not are
kept as dense matrices, so that both products are plain matrix products and the work is
proportional to the number of points.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyscf.gto.eval_gto import BLKSIZE
from torch import Tensor

POINTS = 20 * BLKSIZE
"""Points of a block; few, so that they lie close together."""
TOGETHER_MB = 128
"""Memory for the blocks that PySCF evaluates at a time: its threads and PyTorch's, which wait for
work in a loop, take the cores from each other whenever one follows the other."""
THRESHOLD = 1e-10
"""Largest |χ| and |∇χ| in a block below which an atomic orbital is left out of it."""


@dataclass(frozen=True)
class DensityMatrix:
    """A symmetric density matrix.

    ``matrix`` (nao, nao); ``orbitals`` (nao, n_occ), if known: the occupied ones that it is made
    of, times the square roots of their occupations.
    """

    matrix: Tensor
    orbitals: Tensor | None

    @classmethod
    def all_of(cls, dms: Any) -> list[DensityMatrix]:
        """One or several of PySCF's, (..., nao, nao); only the symmetric part is a density."""
        dm = torch.from_numpy(np.reshape(dms, (-1, *np.shape(dms)[-2:])))
        occupation = getattr(dms, "mo_occ", None)
        orbitals = None
        if occupation is not None and np.ndim(dms) == 2 and np.min(occupation) >= 0:
            held = occupation > 0
            orbitals = torch.from_numpy(dms.mo_coeff[:, held] * np.sqrt(occupation[held]))
        return [cls(d, orbitals) for d in (dm + dm.mT) / 2]


@dataclass(frozen=True)
class Block:
    """χ and ∇χ, (4, n_functions, n_block), of the orbitals that some of the points reach."""

    points: slice
    functions: np.ndarray
    values: Tensor

    def density(self, dm: DensityMatrix) -> Tensor:
        """ρ = Σ_μ χ_μ (Dχ)_μ and ∇ρ = 2 Σ_μ ∇χ_μ (Dχ)_μ, (4, n_block)."""
        chi, functions = self.values, self.functions
        if dm.orbitals is not None and 2 * dm.orbitals.shape[1] < len(functions):
            orbitals = dm.orbitals[functions]
            d_chi = orbitals @ (orbitals.T @ chi[0])
        else:
            d_chi = dm.matrix[functions[:, None], functions] @ chi[0]
        rho = (chi * d_chi).sum(1)
        rho[1:] *= 2
        return rho

    def add_matrix(self, wv: np.ndarray, vmat: np.ndarray) -> None:
        """Add half of V_μν, whose other half is its transpose; wv (4 or 5, n_block).

        ½ v_ρ, v_∇ρ and, of a meta-GGA, v_τ, weights included.
        """
        chi, weights = self.values, torch.from_numpy(wv)
        matrix = chi[0] @ weighted_sum(chi, weights[:4]).T
        for v in weights[4:] / 4:  # ½ in τ = ½Σ|∇φ|²
            for x in chi[1:]:
                matrix += x @ (x * v).T
        vmat[np.ix_(self.functions, self.functions)] += matrix.numpy()


def weighted_sum(chi: Tensor, weights: Tensor) -> Tensor:
    """Σ_x w_x χ_x: (4, n_functions, n_block), (4, n_block) -> (n_functions, n_block)."""
    total = chi[0] * weights[0]
    for x, w in zip(chi[1:], weights[1:], strict=True):
        total.addcmul_(x, w)
    return total


class AtomicOrbitals:
    """Values of a molecule's orbitals on a grid, kept as far as ``max_memory`` (MB) allows."""

    def __init__(self, ni: Any, mol: Any, grids: Any, max_memory: float) -> None:
        self.ni, self.mol, self.grids = ni, mol, grids
        n_points, of_block = grids.weights.size, 4 * mol.nao * POINTS
        together = max(1, int(TOGETHER_MB * 1e6 / 8 / of_block))
        self._together = POINTS * min(together, math.ceil(n_points / POINTS))
        self._evaluated, self._selected = _room(4 * mol.nao * self._together), _room(of_block)
        # one large piece costs fewer page faults; pages that are not touched take no memory
        most = min(max(0, int(max_memory * 1e6 / 8)), 4 * mol.nao * n_points)
        self._free = _room(most)
        self._kept: list[Block] = []
        self._reaching: list[Tensor] = []

    def blocks(self) -> Iterator[Block]:
        """Every point of the grid once; a block that is not kept is overwritten by the next."""
        yield from self._kept
        n_points = self.grids.weights.size
        for start in range(len(self._kept) * POINTS, n_points, self._together):
            several = self._evaluate(slice(start, min(start + self._together, n_points)))
            for n, chi in enumerate(several.split(POINTS, 2), start // POINTS):
                if n == len(self._reaching):
                    peak = torch.maximum(chi.amax(2), -chi.amin(2)).amax(0)
                    self._reaching.append((peak > THRESHOLD).nonzero().squeeze(1))
                functions = self._reaching[n]
                shape = len(chi), len(functions), chi.shape[2]
                size = math.prod(shape)
                kept = n == len(self._kept) and size <= len(self._free)
                room = self._free if kept else self._selected
                values = torch.index_select(chi, 1, functions, out=room[:size].view(shape))
                points = slice(n * POINTS, n * POINTS + shape[2])
                block = Block(points, functions.numpy(), values)
                if kept:
                    self._free = self._free[size:]
                    self._kept.append(block)
                yield block

    def _evaluate(self, points: slice) -> Tensor:
        """χ and ∇χ of all orbitals by PySCF's screened kernels, (4, nao, n_block)."""
        grids = self.grids
        screened = grids.non0tab if self.mol is grids.mol else None
        values = self.ni.eval_ao(
            self.mol,
            grids.coords[points],
            deriv=1,
            non0tab=None if screened is None else screened[points.start // BLKSIZE :],
            cutoff=grids.cutoff,
            out=self._evaluated.numpy(),
        )
        return torch.from_numpy(values).mT


def _room(size: int) -> Tensor:
    """Memory for float64 numbers; NumPy asks for large pages, PyTorch does not."""
    return torch.from_numpy(np.empty(size))
