"""PySCF: a Kohn-Sham object whose exchange is a deorbitalized functional of its density."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from pyscf import dft, scf
from pyscf.df.addons import predefined_auxbasis
from pyscf.dft import numint
from pyscf.gto.eval_gto import BLKSIZE
from pyscf.pbc.gto import Cell
from torch import Tensor

from taufree.errors import UnsupportedError, UserError
from taufree.functional import Functional
from taufree.hosts import pbc
from taufree.hosts.domain import warn_unseen
from taufree.hosts.exchange_correlation import EXCHANGE_CORRELATION, Partials, nuclei, same_xc
from taufree.hosts.mean_field import layered, undressed
from taufree.hosts.response import Responding
from taufree.model.storage import load_model

KS = TypeVar("KS", bound=dft.rks.KohnShamDFT)

AO_BLOCK = 20 * BLKSIZE
"""Grid points whose AO values are contracted together; few, so that they lie close together."""
AO_THRESHOLD = 1e-10
"""Largest |χ| and |∇χ| in a block below which an atomic orbital is left out of it."""


def deorbitalize(mf: KS, model: str | Functional = "ms2", potential: str = "ks") -> KS:
    """A Kohn-Sham object of the same kind, with the orbital-free surrogate of a meta-GGA.

    Parameters
    ----------
    mf : RKS, UKS or ROKS, density-fitted or not; for crystals KRKS, KUKS and the like
        Its ``xc`` is left at PySCF's default or names the model's parent; it is not changed.
    model : str or Functional
        Name of a bundled model, a path to a ``.safetensors`` file, or a loaded functional.
    potential : "ks" or "gks"
        "ks": the full functional derivative of the energy: variational, multiplicative.
        "gks": the parent's partial derivatives at the model's τ̃, applied like any meta-GGA's. The
        energy is not stationary at the result; forces and response are refused.

    Raises
    ------
    UserError
        The object's functional is not the model's parent.
    UnsupportedError
        No Kohn-Sham object, or one of a kind that cannot be served.
    WeightsError
        The model is missing or damaged.
    """
    functional = load_model(model) if isinstance(model, str) else model
    if potential not in EXCHANGE_CORRELATION:
        known = " or ".join(map(repr, EXCHANGE_CORRELATION))
        raise UnsupportedError(f"potential={potential!r} is not available; use {known}.")
    if not isinstance(mf, dft.rks.KohnShamDFT):
        raise UnsupportedError(
            f"deorbitalize() takes a Kohn-Sham object such as dft.RKS(mol), not {type(mf)}."
        )
    periodic = isinstance(mf.mol, Cell)
    if not (pbc.is_supported(mf) if periodic else isinstance(mf, scf.hf.RHF | scf.uhf.UHF)):
        raise UnsupportedError(
            f"{type(mf).__name__} objects cannot be deorbitalized; use dft.RKS(mol) or "
            "dft.UKS(mol), for crystals pbc.dft.KRKS(cell, kpts) or pbc.dft.KUKS(cell, kpts)."
        )
    if periodic and potential != "ks":
        raise UnsupportedError(f"potential={potential!r} is for molecules; use potential='ks'.")
    _check_functional(mf, functional)
    if hasattr(mf, "_scf"):
        raise UnsupportedError("Call deorbitalize() first, then newton() on what it returns.")
    bare = undressed(mf)
    new = bare.view(layered(type(bare)))
    warn_unseen(functional, mf.mol)
    new.xc = functional.parent.xc
    new._numint = (
        pbc.integrator(mf, functional) if periodic else DeorbitalizedNumInt(functional, potential)
    )
    new.converged = False
    fit = getattr(new, "with_df", None)
    if not periodic and fit is not None and fit.auxbasis is None:
        new.with_df = fit.copy()  # the object that was given keeps its own
        new.with_df.auxbasis = coulomb_fitting_basis(new.mol)
    return new


def coulomb_fitting_basis(mol: Any) -> str | None:
    """The auxiliary basis that PySCF fits the density with where no exact exchange is asked for.

    It leaves the choice open while ``xc`` has its default, and then takes a larger one that is
    meant for exact exchange too. None: made from the orbital basis.
    """
    name: str | None = predefined_auxbasis(mol, mol.basis, "PBE")
    return name


def _check_functional(mf: Any, functional: Functional) -> None:
    parent = functional.parent
    default = dft.RKS(mf.mol).xc
    named = "".join(mf.xc.upper().split())
    if mf.nlc or (named != default.replace(" ", "") and not same_xc(named, parent.xc)):
        raise UserError(
            f"This object asks for xc={mf.xc!r} nlc={mf.nlc!r}, but the model stands for "
            f"{parent.xc}: leave xc unset or set mf.xc = {parent.xc!r}."
        )


class DeorbitalizedNumInt(Responding, numint.NumInt):
    """PySCF's numerical integrator with the surrogate in place of libxc's exchange.

    `nr_rks` and `nr_uks` keep PySCF's signature and meaning. A non-local functional needs the
    density at all points before the potential at any: two passes over the grid, for which AO
    values stay in memory as far as ``max_memory`` allows.
    """

    def __init__(self, functional: Functional, potential: str = "ks") -> None:
        super().__init__()
        self.functional = functional
        self.potential = potential
        self._cache: _GridCache | None = None

    def nr_rks(
        self,
        mol: Any,
        grids: Any,
        xc_code: str,
        dms: np.ndarray,
        relativity: int = 0,
        hermi: int = 1,
        max_memory: float = 2000,
        verbose: Any = None,
    ) -> tuple[Any, Any, np.ndarray]:
        """Electrons, E_xc and V_xc of one or several total density matrices, as in PySCF."""
        n, e, v = self._integrate(mol, grids, xc_code, [dms], hermi, max_memory)
        if np.ndim(dms) == 2:
            return n[0, 0], e[0], v[0, 0]
        return n[0], e, v[0]

    def nr_uks(
        self,
        mol: Any,
        grids: Any,
        xc_code: str,
        dms: np.ndarray,
        relativity: int = 0,
        hermi: int = 1,
        max_memory: float = 2000,
        verbose: Any = None,
    ) -> tuple[Any, Any, np.ndarray]:
        """Electrons, E_xc and V_xc of spin-up and spin-down density matrices, as in PySCF."""
        # splits a total density matrix, and the orbitals that tag one (of ROKS too)
        channels = list(numint._format_uks_dm(dms))
        n, e, v = self._integrate(mol, grids, xc_code, channels, hermi, max_memory)
        if np.ndim(channels[0]) == 2:
            return n[:, 0], e[0], v[:, 0]
        return n, e, v

    def _integrate(
        self,
        mol: Any,
        grids: Any,
        xc_code: str,
        channels: list[np.ndarray],
        hermi: int,
        max_memory: float,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Electrons (n_spin, n_set), energies (n_set,), matrices (n_spin, n_set, nao, nao)."""
        cache = self._grid_cache(mol, grids, xc_code, max_memory)
        rho = self._density(cache, channels, hermi)  # (n_spin, n_set, 4, n_points)
        nelec = rho[:, :, 0] @ grids.weights
        energies, derivatives = [], []
        for density in rho.swapaxes(0, 1):
            exc, derivative = cache.xc(density)
            energies.append(cache.xc.energy(exc, density, derivative))
            derivatives.append(derivative)
        return nelec, np.array(energies), self._potential_matrix(cache, np.stack(derivatives, 1))

    def _grid_cache(self, mol: Any, grids: Any, xc_code: str, max_memory: float) -> _GridCache:
        self.check(xc_code)
        if grids.coords is None:
            grids.build(with_non0tab=True)
        if self._cache is None or not self._cache.serves(mol, grids):
            self._cache = _GridCache(self, mol, grids, max_memory)
        return self._cache

    def partials(self, mol: Any, grids: Any, dms: np.ndarray) -> Partials:
        """What E_xc of spin density matrices (n_spin, nao, nao) depends on, for forces."""
        cache = self._cache
        if cache is None or not cache.serves(mol, grids):
            cache = _GridCache(self, mol, grids, max_memory=0)
        return cache.xc.partials(self._density(cache, list(dms), hermi=1)[:, 0])

    def _density(self, cache: _GridCache, channels: list[np.ndarray], hermi: int) -> np.ndarray:
        mol, grids = cache.mol, cache.grids
        evaluators = [self._gen_rho_evaluator(mol, d, hermi, False, grids) for d in channels]
        factors = [_factors(d) for d in channels]
        rho = np.empty((len(channels), evaluators[0][1], 4, grids.weights.size))
        for points, ao in cache.ao_blocks():
            for s, (make_rho, n_set, _) in enumerate(evaluators):
                for i in range(n_set):
                    rho[s, i, :, points] = (
                        make_rho(i, ao.values, ao.mask, "GGA")
                        if ao.functions is None
                        else _block_density(ao, *factors[s][i])
                    )
        return rho

    def _potential_matrix(self, cache: _GridCache, wv: np.ndarray) -> np.ndarray:
        """V_μν from derivatives (n_spin, n_set, 4 or 5, n_points), as of any GGA or meta-GGA."""
        mol, grids = cache.mol, cache.grids
        n_spin, n_set, nao = *wv.shape[:2], mol.nao
        vmat = np.zeros((n_spin, n_set, nao, nao))
        ao_loc = mol.ao_loc_nr()
        pair_mask = mol.get_overlap_cond() < -np.log(self.cutoff)
        cutoff = grids.cutoff * 1e2
        n_bins = numint.NBINS * 2 - int(numint.NBINS * np.log(cutoff) / np.log(grids.cutoff))
        wv[:, :, 0] *= 0.5  # the matrix and its transpose are added at the end
        for points, ao in cache.ao_blocks():
            for s, i in np.ndindex(n_spin, n_set):
                block = np.ascontiguousarray(wv[s, i, :, points])
                if ao.functions is not None:
                    vmat[s, i][np.ix_(ao.functions, ao.functions)] += _block_matrix(ao, block)
                    continue
                chi, mask = ao.values, ao.mask
                pairs = [(chi[0], numint._scale_ao_sparse(chi, block[:4], mask, ao_loc))]
                for v in block[4:] / 4:  # ½ in τ = ½Σ|∇φ|²
                    pairs += [(x, numint._scale_ao_sparse(x, v, mask, ao_loc)) for x in chi[1:]]
                for bra, scaled in pairs:
                    numint._dot_ao_ao_sparse(
                        bra, scaled, None, n_bins, mask, pair_mask, ao_loc, 0, vmat[s, i]
                    )
        return vmat + vmat.swapaxes(-1, -2)


@dataclass(frozen=True)
class AtomicOrbitals:
    """χ and ∇χ of a block of points.

    Either PySCF screens them by ``mask``, and ``values`` is its (4, n_block, nao); or ``functions``
    says which of them are not negligible, and ``values`` is (4, n_functions, n_block).
    """

    values: Any
    mask: np.ndarray | None = None
    functions: np.ndarray | None = None


def _factors(dms: Any) -> list[tuple[Tensor, Tensor | None]]:
    """What `_block_density` takes of each density matrix: its occupied orbitals if it has them."""
    occupation = getattr(dms, "mo_occ", None)
    if occupation is None or np.ndim(dms) != 2 or np.min(occupation) < 0:
        dms = np.reshape(dms, (-1, *np.shape(dms)[-2:]))
        return [(torch.from_numpy((d + d.T) / 2), None) for d in dms]
    held = occupation > 0
    orbitals = torch.from_numpy(dms.mo_coeff[:, held] * np.sqrt(occupation[held]))
    return [(orbitals, orbitals)]


def _block_density(ao: AtomicOrbitals, left: Tensor, right: Tensor | None) -> Tensor:
    """ρ = Σ_k ψ_k ψ'_k and ∇ρ = 2 Σ_k ∇ψ_k ψ'_k at a block of points, (4, n_block).

    ψ = ψ' are occupied orbitals; without them, ψ = χ and ψ' = Dχ of a symmetric density matrix.
    """
    chi = ao.values
    part = left[ao.functions].to(chi)
    if right is None:
        psi, other = chi, part[:, ao.functions] @ chi[0]
    else:
        psi = part.T @ chi
        other = psi[0]
    rho = (psi * other).sum(1).double()
    rho[1:] *= 2
    return rho


def _block_matrix(ao: AtomicOrbitals, wv: np.ndarray) -> np.ndarray:
    """Half of V_μν of the block's functions: the other half is its transpose."""
    chi, weights = ao.values, torch.from_numpy(wv).to(ao.values)
    scaled = chi[0] * weights[0]
    for x, v in zip(chi[1:], weights[1:4], strict=True):
        scaled.addcmul_(x, v)
    matrix = chi[0] @ scaled.T
    for v in weights[4:] / 4:  # ½ in τ = ½Σ|∇φ|²
        for x in chi[1:]:
            matrix += x @ (x * v).T
    return matrix.numpy()


class _GridCache:
    """AO values and neighbour lists of one molecule on one grid."""

    def __init__(self, ni: DeorbitalizedNumInt, mol: Any, grids: Any, max_memory: float) -> None:
        self.ni, self.mol, self.grids = ni, mol, grids
        kind = EXCHANGE_CORRELATION[ni.potential]
        self.xc = kind(ni.functional, grids.coords, grids.weights, nuclei(mol))
        self._env = mol._env.copy()
        self._memory = 0.8 * max_memory * 1e6  # bytes left for values
        self._kept: list[tuple[slice, AtomicOrbitals]] = []

    def serves(self, mol: Any, grids: Any) -> bool:
        return (
            mol is self.mol
            and grids.coords is self.xc.coords
            and np.array_equal(mol._env, self._env)
        )

    def ao_blocks(self) -> Iterator[tuple[slice, AtomicOrbitals]]:
        """Points and what atomic orbitals are there, from memory as far as that goes."""
        n = self.grids.weights.size
        for i, start in enumerate(range(0, n, AO_BLOCK)):
            if i < len(self._kept):
                yield self._kept[i]
                continue
            points = slice(start, min(start + AO_BLOCK, n))
            ao = self._orbitals(points)
            self._memory -= ao.values.nbytes
            if self._memory >= 0:
                self._kept.append((points, ao))
            yield points, ao

    def _orbitals(self, points: slice) -> AtomicOrbitals:
        part = copy.copy(self.grids)
        part.coords, part.weights = self.grids.coords[points], self.grids.weights[points]
        if self.grids.non0tab is not None:
            part.non0tab = part.screen_index = self.grids.non0tab[points.start // BLKSIZE :]
        loop = numint.NumInt.block_loop(self.ni, self.mol, part, deriv=1, blksize=AO_BLOCK)
        values, mask, _, _ = next(loop)
        if mask is not None:
            return AtomicOrbitals(values, mask)
        chi = torch.from_numpy(values).mT
        functions = (chi.abs().amax((0, 2)) > AO_THRESHOLD).nonzero().squeeze(1)
        return AtomicOrbitals(chi[:, functions].contiguous(), functions=functions.numpy())
