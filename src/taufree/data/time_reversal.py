"""k-points by pairs: orbitals, density and Fock matrices at −k are the conjugates of those at k.

PySCF evaluates all points of a mesh. Here one of each pair stands for both in the costly parts,
density-fitting integrals and exchange-correlation; sums over the mesh stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyscf import lib
from pyscf.pbc.df import GDF
from pyscf.pbc.dft import numint

Array = NDArray[Any]

SAME_K = 1e-9
"""k-points closer than this (in units of reciprocal lattice vectors) are one."""


class Pairs:
    """Which k-points of a mesh, (n_k, 3), stand for which.

    Attributes
    ----------
    kept : (n_kept,)
        Indices of the points that are evaluated.
    weight : (n_kept,)
        Points that each stands for, 1 or 2, over their mean.
    real : bool
        Whether all of them are their own partners: their orbitals are real.
    """

    def __init__(self, cell: Any, kpts: Array) -> None:
        scaled = cell.get_scaled_kpts(kpts)
        away = scaled[:, None] + scaled  # a lattice vector: the second is the first reversed
        partner = np.argmax(np.abs(away - away.round()).max(-1) < SAME_K, axis=1)
        first = np.minimum(np.arange(len(kpts)), partner)
        self.kept, self._stands = np.unique(first, return_inverse=True)
        self._reversed = first != np.arange(len(kpts))
        self.real = bool(np.all(partner == np.arange(len(kpts))))
        share = np.bincount(self._stands)
        self.weight = share / share.mean()

    def fold(self, dms: Array) -> Array:
        """(..., n_k, nao, nao) -> (..., n_kept, nao, nao), whose mean has the same density."""
        kept = np.asarray(dms)[..., self.kept, :, :] * self.weight[:, None, None]
        return kept.real if self.real else kept

    def unfold(self, matrices: Array) -> Array:
        """(..., n_kept, nao, nao) -> (..., n_k, nao, nao), real only at Γ alone, as PySCF's are."""
        full = matrices[..., self._stands, :, :]
        if len(self._stands) > 1:
            full = full.astype(complex)
        return np.where(self._reversed[:, None, None], full.conj(), full)


class PairedGDF(GDF):
    """Gaussian density fitting for Coulomb matrices (no exchange, no bands) at all k-points.

    Attraction by the nuclei is left to PySCF: its accuracy depends on the mesh (Sc: 2e-4 Ha).
    """

    @property
    def pairs(self) -> Pairs:
        return Pairs(self.cell, self.kpts)

    def _make_j3c(self, *args: Any, **options: Any) -> None:
        with lib.temporary_env(self, kpts=self.kpts[self.pairs.kept]):
            super()._make_j3c(*args, **options)

    def get_jk(self, dm: Array, *args: Any, **options: Any) -> tuple[Array, None]:
        """Coulomb matrices of density matrices ([2,] n_k, nao, nao)."""
        pairs = self.pairs
        kpts = self.kpts[pairs.kept]
        vj, _ = super().get_jk(pairs.fold(dm), kpts=kpts, with_k=False)
        return pairs.unfold(vj), None


class PairedNumInt(numint.KNumInt):
    """PySCF's integrator for one cell, grid and k mesh: orbital values are kept between cycles."""

    def __init__(self) -> None:
        super().__init__()
        self._blocks: list[Any] = []

    def nr_rks(self, *args: Any, **options: Any) -> tuple[Any, Any, Array]:
        """Electrons, E_xc and V_xc (n_k, nao, nao) of the whole mesh."""
        return _on_half_the_mesh(super().nr_rks, *args, **options)

    def nr_uks(self, *args: Any, **options: Any) -> tuple[Any, Any, Array]:
        """Electrons, E_xc and V_xc (2, n_k, nao, nao) of the whole mesh."""
        return _on_half_the_mesh(super().nr_uks, *args, **options)

    def block_loop(
        self, cell: Any, grids: Any, nao: Any = None, deriv: int = 0, kpts: Any = None,
        *args: Any, **options: Any,
    ) -> Iterator[Any]:  # fmt: skip
        """Blocks as PySCF makes them: values (twice), mask, weights, coordinates."""
        if deriv == 0:  # PySCF's look at the density, once
            yield from super().block_loop(cell, grids, nao, deriv, kpts, *args, **options)
            return
        if not self._blocks:
            real = Pairs(cell, kpts).real
            for ao, _, *rest in super().block_loop(cell, grids, nao, deriv, kpts):
                values = [a.real.copy("K") for a in ao] if real else ao
                self._blocks.append((values, values, *rest))
        yield from self._blocks


def _on_half_the_mesh(
    integrate: Any, cell: Any, grids: Any, xc_code: str, dms: Array, relativity: int = 0,
    hermi: int = 1, kpts: Any = None, *args: Any, **options: Any,
) -> tuple[Any, Any, Array]:  # fmt: skip
    """PySCF's ``integrate`` at one point of each pair, unfolded to the whole mesh."""
    pairs = Pairs(cell, kpts)
    folded = pairs.fold(dms), relativity, hermi, kpts[pairs.kept]
    n, e, v = integrate(cell, grids, xc_code, *folded)
    return n, e, pairs.unfold(v)
