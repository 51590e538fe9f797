"""PySCF: a Kohn-Sham object whose exchange is a deorbitalized functional of its density."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from pyscf import dft, scf
from pyscf.df.addons import predefined_auxbasis
from pyscf.dft import numint
from pyscf.pbc.gto import Cell

from taufree.errors import UnsupportedError
from taufree.functional import Functional
from taufree.hosts import pbc
from taufree.hosts.atomic_orbitals import AtomicOrbitals, DensityMatrix
from taufree.hosts.domain import warn_unseen
from taufree.hosts.exchange_correlation import EXCHANGE_CORRELATION, Partials, nuclei, same_xc
from taufree.hosts.mean_field import layered, undressed
from taufree.hosts.response import Responding
from taufree.model.storage import load_model

KS = TypeVar("KS", bound=dft.rks.KohnShamDFT)


def deorbitalize(mf: KS, model: str | Functional = "ms2", potential: str = "ks") -> KS:
    """A Kohn-Sham object of the same kind, with the orbital-free surrogate of a meta-GGA.

    Parameters
    ----------
    mf : RKS, UKS or ROKS, density-fitted or not; for crystals KRKS, KUKS and the like
        Its ``xc`` is left at PySCF's default or names the model's parent; it is not changed. A
        crystal's uniform grid is exchanged for a Becke grid where it is too coarse for the model.
    model : str, Path or Functional
        Name of a bundled model, a path to a ``.safetensors`` file, or a loaded functional.
    potential : "ks" or "gks"
        "ks": the full functional derivative of the energy: variational, multiplicative.
        "gks": the parent's partial derivatives at the model's τ̃, applied like any meta-GGA's. The
        energy is not stationary at the result; forces and response are refused.

    Raises
    ------
    UnsupportedError
        No Kohn-Sham object, or one of a kind that cannot be served, or its functional is not the
        model's parent.
    WeightsError
        The model is missing or damaged.
    """
    functional = load_model(model)
    if potential not in EXCHANGE_CORRELATION:
        known = " or ".join(map(repr, EXCHANGE_CORRELATION))
        raise UnsupportedError(f"potential={potential!r} is not available; use {known}.")
    if not isinstance(mf, dft.rks.KohnShamDFT):
        raise UnsupportedError(
            f"deorbitalize() takes a Kohn-Sham object such as dft.RKS(mol), not {type(mf)}."
        )
    if hasattr(mf, "U_val"):
        raise UnsupportedError(
            f"{type(mf).__name__}: a Hubbard U is not available for a deorbitalized functional; "
            f"leave it out, or run the parent with it, xc={functional.parent.xc!r}."
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
    if periodic:
        new.grids = pbc.resolving_grids(mf, functional)
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
        raise UnsupportedError(
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
        n, e, v = self._integrate(mol, grids, xc_code, [dms], max_memory)
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
        n, e, v = self._integrate(mol, grids, xc_code, channels, max_memory)
        if np.ndim(channels[0]) == 2:
            return n[:, 0], e[0], v[:, 0]
        return n, e, v

    def _integrate(
        self,
        mol: Any,
        grids: Any,
        xc_code: str,
        channels: list[np.ndarray],
        max_memory: float,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Electrons (n_spin, n_set), energies (n_set,), matrices (n_spin, n_set, nao, nao)."""
        cache = self._grid_cache(mol, grids, xc_code, max_memory)
        rho = self._density(cache, channels)  # (n_spin, n_set, 4, n_points)
        nelec = (rho[:, :, 0] * grids.weights).sum(-1)
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
        return cache.xc.partials(self._density(cache, list(dms))[:, 0])

    def _density(self, cache: _GridCache, channels: list[np.ndarray]) -> np.ndarray:
        matrices = [DensityMatrix.all_of(dms) for dms in channels]
        rho = np.empty((len(channels), len(matrices[0]), 4, cache.grids.weights.size))
        for block in cache.orbitals.blocks():
            for s, i in np.ndindex(rho.shape[:2]):
                rho[s, i, :, block.points] = block.density(matrices[s][i])
        return rho

    def _potential_matrix(self, cache: _GridCache, wv: np.ndarray) -> np.ndarray:
        """V_μν from derivatives (n_spin, n_set, 4 or 5, n_points), as of any GGA or meta-GGA."""
        vmat = np.zeros((*wv.shape[:2], cache.mol.nao, cache.mol.nao))
        wv[:, :, 0] *= 0.5  # the matrix and its transpose are added at the end
        for block in cache.orbitals.blocks():
            for s, i in np.ndindex(wv.shape[:2]):
                block.add_matrix(wv[s, i, :, block.points], vmat[s, i])
        return vmat + vmat.swapaxes(-1, -2)


class _GridCache:
    """Orbitals and neighbour lists of one molecule on one grid."""

    def __init__(self, ni: DeorbitalizedNumInt, mol: Any, grids: Any, max_memory: float) -> None:
        self.mol, self.grids = mol, grids
        kind = EXCHANGE_CORRELATION[ni.potential]
        self.xc = kind(ni.functional, grids.coords, grids.weights, nuclei(mol))
        self.orbitals = AtomicOrbitals(mol, grids, 0.8 * max_memory)
        self._env = mol._env.copy()

    def serves(self, mol: Any, grids: Any) -> bool:
        return (
            mol is self.mol
            and grids.coords is self.xc.coords
            and np.array_equal(mol._env, self._env)
        )
