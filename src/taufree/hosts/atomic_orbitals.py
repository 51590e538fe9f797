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
from pyscf.dft.numint import eval_ao
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
        place = self.functions[:, None] * len(vmat) + self.functions
        total = torch.from_numpy(vmat.reshape(-1))  # the same memory
        total.index_add_(0, torch.from_numpy(place.reshape(-1)), matrix.flatten())


def weighted_sum(chi: Tensor, weights: Tensor) -> Tensor:
    """Σ_x w_x χ_x: (4, n_functions, n_block), (4, n_block) -> (n_functions, n_block)."""
    total = chi[0] * weights[0]
    for x, w in zip(chi[1:], weights[1:], strict=True):
        total.addcmul_(x, w)
    return total


class AtomicOrbitals:
    """Values of a molecule's orbitals on a grid, kept as far as ``max_memory`` (MB) allows.

    Of every block only shells are evaluated that PySCF's screening leaves, and from the second time
    on that were found to reach it, so that the work is proportional to the number of points.
    """

    def __init__(self, mol: Any, grids: Any, max_memory: float) -> None:
        self.mol, self.grids = mol, grids
        screen = grids.non0tab if mol is grids.mol else None
        self._screen: np.ndarray = grids.make_mask(mol, grids.coords) if screen is None else screen
        n_functions = np.diff(mol.ao_loc_nr())
        self._shell = np.repeat(np.arange(mol.nbas), n_functions)  # of each function
        rows = range(0, len(self._screen), POINTS // BLKSIZE)
        self._shells = [self._screen[k : k + POINTS // BLKSIZE].any(0) for k in rows]
        widest = max(n_functions[shells].sum() for shells in self._shells)
        self._together = max(1, int(TOGETHER_MB * 1e6 / 8 / (4 * POINTS * widest)))
        # one large piece costs fewer page faults; pages that are not touched take no memory
        most = min(max(0, int(max_memory * 1e6 / 8)), 4 * mol.nao * grids.weights.size)
        self._free, self._selected = _room(most), _room(4 * POINTS * widest)
        self._evaluated = _room(0)
        self._kept: list[Block] = []
        self._functions: dict[int, np.ndarray] = {}

    def blocks(self) -> Iterator[Block]:
        """Every point of the grid once; a block that is not kept is overwritten by the next."""
        yield from self._kept
        for first in range(len(self._kept), len(self._shells), self._together):
            evaluated, several = self._evaluate(first, first + self._together)
            for n, chi in enumerate(several.split(POINTS, 2), first):
                if n not in self._functions:
                    peak = torch.maximum(chi.amax(2), -chi.amin(2)).amax(0)
                    self._functions[n] = evaluated[(peak > THRESHOLD).numpy()]
                    self._shells[n] = np.isin(
                        np.arange(self.mol.nbas), self._shell[self._functions[n]]
                    )
                functions = self._functions[n]
                shape = len(chi), len(functions), chi.shape[2]
                size = math.prod(shape)
                kept = n == len(self._kept) and size <= len(self._free)
                room = self._free if kept else self._selected
                chosen = torch.from_numpy(np.searchsorted(evaluated, functions))
                values = torch.index_select(chi, 1, chosen, out=room[:size].view(shape))
                block = Block(slice(n * POINTS, n * POINTS + shape[2]), functions, values)
                if kept:
                    self._free = self._free[size:]
                    self._kept.append(block)
                yield block

    @property
    def kept_mb(self) -> float:
        """Memory that kept values take."""
        return sum(block.values.nbytes for block in self._kept) / 1e6

    def _evaluate(self, first: int, last: int) -> tuple[np.ndarray, Tensor]:
        """Orbitals that reach some blocks, and their χ and ∇χ, (4, n_functions, n_points)."""
        shells = np.any(self._shells[first:last], 0)
        functions = np.flatnonzero(shells[self._shell])
        coords = self.grids.coords[first * POINTS : last * POINTS]
        size = 4 * len(functions) * len(coords)
        if size > len(self._evaluated):
            self._evaluated = _room(size)
        if not size:
            return functions, self._evaluated.view(4, 0, len(coords))
        some = self.mol.copy(deep=False)
        some._bas = self.mol._bas[shells]
        rows = slice(first * POINTS // BLKSIZE, last * POINTS // BLKSIZE)
        screen = np.ascontiguousarray(self._screen[rows, shells])
        values = eval_ao(some, coords, deriv=1, non0tab=screen, out=self._evaluated.numpy())
        return functions, torch.from_numpy(values).mT


def _room(size: int) -> Tensor:
    """Memory for float64 numbers; NumPy asks for large pages, PyTorch does not."""
    return torch.from_numpy(np.empty(size))
