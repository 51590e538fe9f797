"""PySCF's periodic integrators with the surrogate in place of libxc's exchange.

A Bloch function φ_k = u + iw is two real functions, so for real sums a crystal is a molecule with
twice the basis at every k. With D = A + iB the Hermitian density matrix at k,

    ρ = Σ_k Σ_μν φ_kμ D_μν φ*_kν = Σ_k fᵀ M f,   f = (u, w),   M = ( A  B)
                                                                  (−B  A)

and the potential matrix comes back from G = f v fᵀ as V = G_uu + G_ww + i(G_uw − G_wu). Time
reversal, φ_−k = φ*_k, leaves one of k and −k to evaluate; where k and −k differ by a reciprocal
lattice vector (Γ, zone boundary), φ_k is real.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyscf.gto.eval_gto import BLKSIZE
from pyscf.lib import logger
from pyscf.pbc import dft
from pyscf.pbc.dft import gen_grid, numint
from pyscf.pbc.dft.multigrid import MultiGridNumInt
from pyscf.pbc.lib.kpts import KPoints
from torch import Tensor

from taufree.functional import Functional
from taufree.hosts import multigrid
from taufree.hosts.atomic_orbitals import weighted_sum
from taufree.hosts.domain import unresolved_spacing, warn_unresolved
from taufree.hosts.exchange_correlation import (
    ExchangeCorrelation,
    Partials,
    nuclei,
    periodic_vectors,
)
from taufree.hosts.integrator import PERIODIC_PARENT, Deorbitalizing

SAME_K = 1e-9
"""k-points closer than this (in units of reciprocal lattice vectors) are one."""
BLOCK_MB = 32
"""Memory of one block of orbital values; such blocks keep matrix products in cache."""


def is_supported(mf: Any) -> bool:
    """Restricted and unrestricted Kohn-Sham objects, at one k-point or many."""
    kinds = dft.rks.RKS, dft.uks.UKS, dft.roks.ROKS, dft.krks.KRKS, dft.kuks.KUKS, dft.kroks.KROKS
    return isinstance(mf, kinds)


def integrator(mf: Any, functional: Functional) -> Any:
    """An integrator of the kind that the object has."""
    if isinstance(mf._numint, MultiGridNumInt):
        return multigrid.deorbitalized(mf._numint, functional)
    if isinstance(mf._numint, numint.KNumInt):
        return DeorbitalizedKNumInt(functional)
    return DeorbitalizedNumInt(functional)


def resolving_grids(mf: Any, functional: Functional) -> Any:
    """The object's grid, or a Becke grid where that is a uniform one too coarse for the tokens.

    Multigrid integration has no other than its uniform grid.
    """
    cell, grids = mf.cell, mf.grids
    if isinstance(mf._numint, MultiGridNumInt) or not isinstance(grids, gen_grid.UniformGrids):
        return grids
    spacing = unresolved_spacing(functional, cell.lattice_vectors(), grids.mesh)
    if spacing is None:
        return grids
    logger.note(
        mf,
        "taufree: exchange and correlation on a Becke grid, for the uniform one, %.2f bohr apart, "
        "does not resolve the nuclei as this model sees them",
        spacing,
    )
    return gen_grid.BeckeGrids(cell)


class _Periodic(Deorbitalizing):
    """Both integrators: densities at all points first, then potentials, as for molecules."""

    parent_call = PERIODIC_PARENT

    def __init__(self, functional: Functional) -> None:
        super().__init__()
        self.functional = functional
        self._cache: _GridCache | None = None

    def _integrate(
        self,
        cell: Any,
        grids: Any,
        xc_code: str,
        dms: np.ndarray,
        kpts: np.ndarray,
        kpts_band: np.ndarray | None,
        max_memory: float,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Electrons (n_spin, n_set), energies (n_set,), matrices (n_spin, n_set, n_band, nao, nao).

        ``dms`` (n_spin, n_set, n_k, nao, nao).
        """
        self.check(xc_code)
        if isinstance(grids, gen_grid.BeckeGrids) and grids.coords is None:
            grids.build(with_non0tab=True)
        out = kpts if kpts_band is None else np.reshape(kpts_band, (-1, 3))
        cache = self._cache
        if cache is None or not cache.serves(cell, grids, kpts, out):
            cache = _GridCache(self.functional, cell, grids, kpts, out, max_memory)
            if kpts_band is None or self._cache is None:
                self._cache = cache
        rho = cache.density(dms)  # (n_spin, n_set, 4, n_points)
        nelec = rho[:, :, 0] @ cache.xc.weights
        exc = np.empty(rho.shape[1])
        for i in range(rho.shape[1]):
            energy_density, derivative = cache.xc(rho[:, i])
            exc[i] = cache.xc.energy(energy_density, rho[:, i], derivative)
            rho[:, i] = derivative
        return nelec, exc, cache.potential_matrix(rho)

    def _of_spins(
        self,
        cell: Any,
        grids: Any,
        xc_code: str,
        dms: Any,
        kpts: Any,
        kpts_band: np.ndarray | None,
        max_memory: float,
    ) -> tuple[Any, Any, np.ndarray]:
        """What `_integrate` gives for matrices of each spin; of a single set without its axis."""
        kpts, channels = _unfolded(kpts, dms)
        sets = np.reshape(channels, (len(channels), -1, len(kpts), *np.shape(channels)[-2:]))
        n, e, v = self._integrate(cell, grids, xc_code, sets, kpts, kpts_band, max_memory)
        return (n[:, 0], e[0], v[:, 0]) if len(e) == 1 else (n, e, v)

    def partials(self, cell: Any, grids: Any, kpts: np.ndarray, dms: np.ndarray) -> Partials:
        """What E_xc of density matrices ([2,] n_k, nao, nao) depends on, for forces and stress."""
        if self._cache is None or not self._cache.serves(cell, grids, kpts, kpts):
            self._cache = _GridCache(self.functional, cell, grids, kpts, kpts, max_memory=0)
        sets = np.reshape(dms, (-1, 1, *np.shape(dms)[-3:]))
        return self._cache.xc.partials(self._cache.density(sets)[:, 0])


class DeorbitalizedKNumInt(_Periodic, numint.KNumInt):
    """`pyscf.pbc.dft.numint.KNumInt`, k-points; `nr_rks`, `nr_uks` keep signature and meaning."""

    def nr_rks(
        self,
        cell: Any,
        grids: Any,
        xc_code: str,
        dms: np.ndarray,
        relativity: int = 0,
        hermi: int = 1,
        kpts: np.ndarray | None = None,
        kpts_band: np.ndarray | None = None,
        max_memory: float = 2000,
        verbose: Any = None,
    ) -> tuple[Any, Any, np.ndarray]:
        """Electrons, E_xc and V_xc (n_k, nao, nao) of density matrices of that shape."""
        n, e, v = self._of_spins(cell, grids, xc_code, [dms], kpts, kpts_band, max_memory)
        return n[0], e, v[0]

    def nr_uks(
        self,
        cell: Any,
        grids: Any,
        xc_code: str,
        dms: np.ndarray,
        relativity: int = 0,
        hermi: int = 1,
        kpts: np.ndarray | None = None,
        kpts_band: np.ndarray | None = None,
        max_memory: float = 2000,
        verbose: Any = None,
    ) -> tuple[Any, Any, np.ndarray]:
        """Electrons, E_xc and V_xc of spin-up and spin-down density matrices."""
        return self._of_spins(cell, grids, xc_code, dms, kpts, kpts_band, max_memory)


class DeorbitalizedNumInt(_Periodic, numint.NumInt):
    """`pyscf.pbc.dft.numint.NumInt`, one k-point; `nr_rks`, `nr_uks` keep signature and meaning."""

    def nr_rks(
        self,
        cell: Any,
        grids: Any,
        xc_code: str,
        dms: np.ndarray,
        relativity: int = 0,
        hermi: int = 1,
        kpt: np.ndarray | None = None,
        kpts_band: np.ndarray | None = None,
        max_memory: float = 2000,
        verbose: Any = None,
    ) -> tuple[Any, Any, np.ndarray]:
        """Electrons, E_xc and V_xc (nao, nao) of one or several density matrices."""
        n, e, v = self._of_spins(cell, grids, xc_code, [dms], kpt, kpts_band, max_memory)
        return n[0], e, (v[..., 0, :, :] if kpts_band is None else v)[0]

    def nr_uks(
        self,
        cell: Any,
        grids: Any,
        xc_code: str,
        dms: np.ndarray,
        relativity: int = 0,
        hermi: int = 1,
        kpt: np.ndarray | None = None,
        kpts_band: np.ndarray | None = None,
        max_memory: float = 2000,
        verbose: Any = None,
    ) -> tuple[Any, Any, np.ndarray]:
        """Electrons, E_xc and V_xc of spin-up and spin-down density matrices."""
        n, e, v = self._of_spins(cell, grids, xc_code, dms, kpt, kpts_band, max_memory)
        return n, e, v[..., 0, :, :] if kpts_band is None else v


def _unfolded(kpts: Any, dms: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """k-points (n_k, 3), and the density matrices of each spin at every one of them."""
    if isinstance(kpts, KPoints):  # those related by symmetry are left out
        return kpts.kpts, [np.asarray(kpts.transform_dm(dm)) for dm in dms]
    kpts = np.zeros((1, 3)) if kpts is None else np.reshape(kpts, (-1, 3))
    return kpts, [np.asarray(dm) for dm in dms]


@dataclass(frozen=True)
class _BlochSet:
    """One k-point whose orbitals are evaluated, and those that share them."""

    kpt: np.ndarray
    real: bool
    density: list[tuple[int, bool]]
    """Index of each density matrix that belongs to it, and whether it is at −k."""
    potential: list[tuple[int, bool]]


def _bloch_sets(cell: Any, kpts: np.ndarray, out: np.ndarray) -> list[_BlochSet]:
    """``kpts`` of density matrices and ``out`` of potentials, k and −k together."""
    sets: list[_BlochSet] = []
    fractions = [cell.get_scaled_kpts(k) for k in (kpts, out)]
    for role, (points, scaled) in enumerate(zip((kpts, out), fractions, strict=True)):
        for i, (kpt, x) in enumerate(zip(points, scaled, strict=True)):
            for each in sets:
                y = cell.get_scaled_kpts(each.kpt)
                if _same(x, y) or _same(x, -y):
                    break
            else:
                each = _BlochSet(kpt, _same(x, -x), [], [])
                sets.append(each)
                y = x
            (each.potential if role else each.density).append((i, not _same(x, y)))
    return sets


def _same(x: np.ndarray, y: np.ndarray) -> bool:
    difference = x - y
    return bool(np.abs(difference - difference.round()).max() < SAME_K)


class _GridCache:
    """Orbital values and neighbour lists of one cell on one grid, for given k-points."""

    def __init__(
        self,
        functional: Functional,
        cell: Any,
        grids: Any,
        kpts: np.ndarray,
        out: np.ndarray,
        max_memory: float,
    ) -> None:
        self.cell, self.grids, self.kpts, self.out = cell, grids, kpts, out
        self._state = _state(cell, grids)
        self.xc = ExchangeCorrelation(
            functional, grids.coords, grids.weights, nuclei(cell), periodic_vectors(cell)
        )
        if not isinstance(grids, gen_grid.BeckeGrids):
            warn_unresolved(functional, cell.lattice_vectors(), grids.mesh)
        self.sets = _bloch_sets(cell, kpts, out)
        values = sum(4 * cell.nao * (1 if s.real else 2) for s in self.sets)  # at one point
        self.block = max(1, int(BLOCK_MB * 1e6 / (8 * values * BLKSIZE))) * BLKSIZE
        self._n_kept = int(0.8 * max_memory * 1e6 // (8 * values * self.block))
        self._kept: list[tuple[slice, list[Tensor]]] = []

    def serves(self, cell: Any, grids: Any, kpts: np.ndarray, out: np.ndarray) -> bool:
        return (
            cell is self.cell
            and grids is self.grids
            and np.array_equal(kpts, self.kpts)
            and np.array_equal(out, self.out)
            and all(map(np.array_equal, _state(cell, grids), self._state))
        )

    def ao_blocks(self) -> Iterator[tuple[slice, list[Tensor]]]:
        """Points, and real functions f with gradients, (4, nao or 2 nao, n_block) of each set."""
        kpts = np.array([s.kpt for s in self.sets])
        n_points = len(self.xc.weights)
        for i, start in enumerate(range(0, n_points, self.block)):
            if i < len(self._kept):
                yield self._kept[i]
                continue
            points = slice(start, min(start + self.block, n_points))
            coords = self.xc.coords[points]
            mask = gen_grid.make_mask(self.cell, coords)
            aos = numint.eval_ao_kpts(self.cell, coords, kpts, deriv=1, non0tab=mask)
            f = [_real_functions(ao, s.real) for ao, s in zip(aos, self.sets, strict=True)]
            if i < self._n_kept:
                self._kept.append((points, f))
            yield points, f

    def density(self, dms: np.ndarray) -> np.ndarray:
        """ρ and ∇ρ, (n_spin, n_set, 4, n_points), of (n_spin, n_set, n_k, nao, nao)."""
        flat = dms.reshape(-1, *dms.shape[2:]) / len(self.kpts)
        m = [[_real_form(s, dm) for s in self.sets] for dm in flat]
        rho = torch.zeros(len(flat), 4, len(self.xc.weights), dtype=torch.float64)
        for points, functions in self.ao_blocks():
            for d in range(len(flat)):
                for f, matrix in zip(functions, m[d], strict=True):
                    if matrix is not None:
                        rho[d, :, points] += (f * (matrix @ f[0])).sum(1)
        rho[:, 1:] *= 2
        return rho.reshape(*dms.shape[:2], 4, -1).numpy()

    def potential_matrix(self, derivative: np.ndarray) -> np.ndarray:
        """V (n_spin, n_set, n_band, nao, nao) from derivatives (n_spin, n_set, 4, n_points)."""
        wv = torch.from_numpy(derivative).flatten(0, 1)
        wv[:, 0] *= 0.5  # the matrix and its transpose are added at the end
        nao = self.cell.nao
        g = [
            torch.zeros(len(wv), n, n, dtype=torch.float64)
            for n in (nao if s.real else 2 * nao for s in self.sets)
        ]
        for points, functions in self.ao_blocks():
            for d, s in np.ndindex(len(wv), len(self.sets)):
                if self.sets[s].potential:
                    f = functions[s]
                    g[s][d].addmm_(f[0], weighted_sum(f, wv[d, :, points]).T)
        real = all(s.real for s in self.sets) and not np.abs(self.out).max() > SAME_K
        v = np.empty((len(wv), len(self.out), nao, nao), float if real else complex)
        for s, matrix in zip(self.sets, g, strict=True):
            at_k = _bloch_form(s, (matrix + matrix.mT).numpy())
            for i, reversed_k in s.potential:
                v[:, i] = at_k.conj() if reversed_k else at_k
        return v.reshape(*derivative.shape[:2], *v.shape[1:])


def _state(cell: Any, grids: Any) -> tuple[np.ndarray, ...]:
    """What orbital values on a grid depend on; copies, for cells and grids change in place."""
    uniform = not isinstance(grids, gen_grid.BeckeGrids)
    coords = np.array(grids.mesh) if uniform and grids._coords is None else grids.coords
    return cell._env.copy(), cell.lattice_vectors(), coords


def _real_functions(ao: np.ndarray, real: bool) -> Tensor:
    """f (4, nao or 2 nao, n_block) from AO values and gradients (4, n_block, nao)."""
    ao = ao.transpose(0, 2, 1)
    parts = ao.real if real else np.concatenate([ao.real, ao.imag], 1)
    return torch.from_numpy(np.ascontiguousarray(parts))


def _real_form(s: _BlochSet, dm: np.ndarray) -> Tensor | None:
    """M of the density matrices (n_k, nao, nao) that belong to one set of orbitals."""
    if not s.density:
        return None
    d = sum(dm[i].conj() if reversed_k else dm[i] for i, reversed_k in s.density)
    d = (d + d.conj().T) / 2
    m = d.real if s.real else np.block([[d.real, d.imag], [-d.imag, d.real]])
    return torch.from_numpy(np.ascontiguousarray(m))


def _bloch_form(s: _BlochSet, g: np.ndarray) -> np.ndarray:
    """V (..., nao, nao) from G of the real functions."""
    if s.real:
        return g
    n = g.shape[-1] // 2
    uu, uw, wu, ww = g[..., :n, :n], g[..., :n, n:], g[..., n:, :n], g[..., n:, n:]
    v: np.ndarray = uu + ww + 1j * (uw - wu)
    return v
