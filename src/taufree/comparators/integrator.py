"""PySCF's integrators with a functional of ρ, ∇ρ and ∇²ρ in place of the parent's exchange.

PySCF refuses functionals of the Laplacian. The matrix of one is that of a GGA and

    ∫ ∂e/∂(∇²ρ) ∇²(φ_μ* φ_ν) = ∫ ∂e/∂(∇²ρ) (φ_μ* ∇²φ_ν + φ_ν ∇²φ_μ* + 2 ∇φ_μ*·∇φ_ν).

A molecule is a crystal with one k-point and real orbitals. Not made to be fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from pyscf.dft import numint
from pyscf.pbc.dft import numint as periodic
from pyscf.pbc.gto import Cell

from taufree.comparators.self_consistent import Rival
from taufree.data.time_reversal import Pairs
from taufree.errors import UnsupportedError
from taufree.hosts.exchange_correlation import libxc_eff

EMPTY = 1e-15
"""Occupation, of the largest, below which a natural orbital is left out."""

NEGLIGIBLE = 1e-10
"""Value and derivatives, in atomic units, below which an orbital is left out of a block."""
BLOCK_MB = 200
"""Small blocks are reached by few orbitals, large ones make fast products."""


class Block(NamedTuple):
    """The basis at neighbouring points."""

    held: np.ndarray
    """Indices of the ``n_held`` orbitals that reach them."""
    chi: list[np.ndarray]
    """χ, ∂xχ, ∂yχ, ∂zχ, ∇²χ at every k-point, (5, n_block, n_held) each."""


def attach(mf: Any, rival: Rival) -> Any:
    """Give a fresh RKS, UKS, KRKS or KUKS object of the rival's parent the rival's exchange.

    For energies and densities alone: forces are refused, and response would be the parent's.
    """

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise UnsupportedError(f"{rival.name} has energies alone, no forces.")

    kind = RivalKNumInt if isinstance(mf.mol, Cell) else RivalNumInt
    mf._numint = kind(rival)
    mf.Gradients = mf.nuc_grad_method = refuse
    return mf


class _Integrating:
    """Both integrators; one density matrix a spin channel, or the total one of a closed shell."""

    def __init__(self, rival: Rival) -> None:
        super().__init__()
        self.rival = rival
        self._kept: tuple[Any, Any, list[Block]] | None = None

    def blocks(self, mol: Any, grids: Any, kpts: Any, max_memory: float) -> Iterator[Block]:
        """Blocks in the order of the grid, kept for the next time if there is room for all."""
        if self._kept is not None:
            coords, at, kept = self._kept
            if coords is grids.coords and np.array_equal(at, kpts):
                yield from kept
                return
        size = 40 * grids.weights.size * mol.nao * (1 if kpts is None else 2 * len(kpts)) / 1e6
        keep: list[Block] = []
        for block in self._evaluated(mol, grids, kpts):
            if size < 0.8 * max_memory:
                keep.append(block)
            yield block
        if keep:
            self._kept = grids.coords, kpts, keep

    def _evaluated(self, mol: Any, grids: Any, kpts: Any) -> Iterator[Block]:
        options = {} if kpts is None else {"kpts": kpts}
        for ao, *_ in self.block_loop(mol, grids, mol.nao, 2, max_memory=BLOCK_MB, **options):  # type: ignore[attr-defined]
            several = [ao] if kpts is None else ao
            chi = [np.concatenate([a[:4], a[4:5] + a[7:8] + a[9:10]]) for a in several]
            reach = np.max([np.abs(c).max((0, 1)) for c in chi], axis=0)
            held = np.flatnonzero(reach > NEGLIGIBLE)
            yield Block(held, [c[:, :, held] for c in chi])

    def xc(
        self, mol: Any, grids: Any, dms: np.ndarray, kpts: Any = None, max_memory: float = 4000
    ) -> tuple[np.ndarray, float, np.ndarray]:
        """Electrons of each spin, E_xc and V_xc of ``dms`` (n_spin, n_k, nao, nao)."""
        if grids.coords is None:
            grids.build(with_non0tab=True)
        n_spin, weights = len(dms), grids.weights
        spins = [[natural(d) for d in dm] for dm in dms]
        rho = np.concatenate(
            [
                [density(block, dm) for dm in spins]
                for block in self.blocks(mol, grids, kpts, max_memory)
            ],
            axis=2,
        )  # (n_spin, 5, n_points)
        correlation, derivative = libxc_eff(self.rival.parent.correlation, rho[:, :4])
        exc = rho[:, 0].sum(0) * correlation
        wv = np.concatenate([derivative * weights, np.zeros_like(rho[:, :1])], 1)
        place = torch.from_numpy(weights), torch.from_numpy(grids.coords)
        for channel, of_channel in zip(rho, wv, strict=True):
            e, d = self.rival.differentiated(torch.from_numpy(n_spin * channel), *place)
            exc += e.numpy() / n_spin
            of_channel += d.numpy()
        v, first = np.zeros_like(dms), 0
        for block in self.blocks(mol, grids, kpts, max_memory):
            here = slice(first, first + block.chi[0].shape[1])
            for s, k in np.ndindex(v.shape[:2]):
                v[s, k][np.ix_(block.held, block.held)] += matrix(block.chi[k], wv[s, :, here])
            first = here.stop
        return rho[:, 0] @ weights, float(exc @ weights), v


def natural(dm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Occupations (n,) and orbitals (nao, n) of a Hermitian density matrix: few are not empty.

    Negative ones count, as `taufree.data.orbitals.factor` has it not: a first guess may have them.
    """
    occupations, orbitals = np.linalg.eigh(dm)
    held = np.abs(occupations) > EMPTY * np.abs(occupations).max()
    return occupations[held], orbitals[:, held]


def density(block: Block, dm: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """ρ, ∇ρ and ∇²ρ, (5, n_block), of the orbitals of `natural`: Σ_i n_i |ψ_i|², mean over k."""
    rho = np.zeros((5, block.chi[0].shape[1]))
    for chi, (occupations, orbitals) in zip(block.chi, dm, strict=True):
        psi = chi @ orbitals[block.held]
        weighted = psi[:4].conj() * occupations
        rho += np.einsum("xpi,pi->xp", psi, weighted[0]).real
        rho[4] += np.einsum("xpi,xpi->p", psi[1:4], weighted[1:]).real
    rho[1:] *= 2
    return rho / len(dm)


def matrix(chi: np.ndarray, wv: np.ndarray) -> np.ndarray:
    """V_μν of one block from derivatives by ρ, ∇ρ and ∇²ρ, weights included, (5, n_block)."""
    half = chi[0] * (0.5 * wv[0, :, None])
    for x, w in zip(chi[1:], wv[1:], strict=True):
        if w.any():
            half += x * w[:, None]
    v = chi[0].conj().T @ half
    if wv[4].any():
        for x in chi[1:4]:
            v += x.conj().T @ (wv[4, :, None] * x)
    return v + v.conj().T


class RivalNumInt(_Integrating, numint.NumInt):
    """`pyscf.dft.numint.NumInt` for an SCF."""

    def nr_rks(
        self, mol: Any, grids: Any, xc_code: str, dms: Any, relativity: int = 0, hermi: int = 1,
        max_memory: float = 2000, verbose: Any = None,
    ) -> tuple[Any, Any, np.ndarray]:  # fmt: skip
        """Electrons, E_xc and V_xc of a total density matrix."""
        n, e, v = self.xc(mol, grids, np.asarray(dms)[None, None], None, max_memory)
        return n[0], e, v[0, 0]

    def nr_uks(
        self, mol: Any, grids: Any, xc_code: str, dms: Any, relativity: int = 0, hermi: int = 1,
        max_memory: float = 2000, verbose: Any = None,
    ) -> tuple[Any, Any, np.ndarray]:  # fmt: skip
        """Electrons, E_xc and V_xc of spin-up and spin-down density matrices."""
        n, e, v = self.xc(mol, grids, np.asarray(dms)[:, None], None, max_memory)
        return n, e, v[:, 0]


class RivalKNumInt(_Integrating, periodic.KNumInt):
    """`pyscf.pbc.dft.numint.KNumInt` for an SCF, at one of each pair k and −k."""

    def _on_pairs(
        self, cell: Any, grids: Any, dms: np.ndarray, kpts: np.ndarray, band: Any, max_memory: float
    ) -> tuple[np.ndarray, float, np.ndarray]:
        if band is not None:
            raise UnsupportedError(f"{self.rival.name} has no potential between its k-points.")
        pairs = Pairs(cell, kpts)
        folded = pairs.fold(dms).astype(complex)
        n, e, v = self.xc(cell, grids, folded, kpts[pairs.kept], max_memory)
        return n, e, pairs.unfold(v.real if pairs.real else v)

    def nr_rks(
        self, cell: Any, grids: Any, xc_code: str, dms: Any, relativity: int = 0, hermi: int = 1,
        kpts: Any = None, kpts_band: Any = None, max_memory: float = 2000, verbose: Any = None,
    ) -> tuple[Any, Any, np.ndarray]:  # fmt: skip
        """Electrons, E_xc and V_xc (n_k, nao, nao) of the whole mesh."""
        n, e, v = self._on_pairs(cell, grids, np.asarray(dms)[None], kpts, kpts_band, max_memory)
        return n[0], e, v[0]

    def nr_uks(
        self, cell: Any, grids: Any, xc_code: str, dms: Any, relativity: int = 0, hermi: int = 1,
        kpts: Any = None, kpts_band: Any = None, max_memory: float = 2000, verbose: Any = None,
    ) -> tuple[Any, Any, np.ndarray]:  # fmt: skip
        """Electrons, E_xc and V_xc (2, n_k, nao, nao) of the whole mesh."""
        return self._on_pairs(cell, grids, np.asarray(dms), kpts, kpts_band, max_memory)
