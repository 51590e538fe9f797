"""Response through PySCF's own interface: second-order SCF, stability, polarizabilities, TDDFT.

PySCF asks an integrator for the kernel fxc at a density, keeps it, and has it applied to trial
density matrices. A local functional's kernel is numbers at points; this one's is an `XCKernel`,
which reads each trial density at all points before it answers at any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pyscf.dft import numint

from taufree.errors import UnsupportedError
from taufree.hosts.exchange_correlation import ExchangeCorrelation, FrozenTau
from taufree.hosts.integrator import Deorbitalizing
from taufree.response import Response

TRIAL_ARRAYS = 8
"""Arrays of the size of a trial density that applying the kernel holds at once."""


class XCKernel:
    """The second derivative of E_xc at one density, applied to changes of the density.

    Exchange by spin scaling, v_s = v[n_spin ρ_s]: δv_s = n_spin E_x''[n_spin ρ_s] δρ_s.

    Parameters
    ----------
    xc : ExchangeCorrelation
    rho : (n_spin, 4, n_points)
        ρ and ∇ρ; of a closed shell one array, or twice its half for singlets and triplets.
    """

    def __init__(self, xc: ExchangeCorrelation, rho: np.ndarray) -> None:
        parent = xc.functional.parent
        if isinstance(xc, FrozenTau):
            raise UnsupportedError(
                "Response is not available for potential='gks', which is not the derivative of an "
                "energy; use potential='ks'."
            )
        if parent.correlation_needs_tau:
            raise UnsupportedError(
                f"The response of {parent.xc}, whose correlation depends on τ, is not available; "
                "use finite differences, for example of the dipole in a field."
            )
        self.n_spin, self.device = len(rho), xc.functional.device
        self.points, geometry, weights, channels = xc.on_points(rho, xc.functional)
        distinct = channels[:1] if np.array_equal(rho[0], rho[-1]) else channels
        responses = [Response(xc.functional, *channel, weights, geometry) for channel in distinct]
        self.exchange = responses * (self.n_spin // len(responses))
        self.correlation = _libxc_kernel(parent.correlation, rho) * xc.weights
        self.scale = 1.0

    def __imul__(self, scale: float) -> XCKernel:
        """PySCF halves the kernel where it hands over densities of both spins as those of one."""
        self.scale *= scale
        return self

    def __call__(self, change: np.ndarray) -> np.ndarray:
        """Change of ∂E_xc/∂(ρ, ∇ρ)_s at each point, weights included.

        Shapes: (n_spin, n_changes, 4, n_points) -> the same.
        """
        out = np.einsum("sxtyp,tnyp->snxp", self.correlation, change)
        for s, channel in enumerate(change):
            out[s] += self._exchange(s, channel)
        return self.scale * out

    def spin_adapted(self, change: np.ndarray, singlet: bool) -> np.ndarray:
        """The same for spin up where that of spin down is equal (singlet) or opposite (triplet)."""
        same, other = self.correlation[0, :, 0], self.correlation[0, :, 1]
        correlation = same + other if singlet else same - other
        out = np.einsum("xyp,nyp->nxp", correlation, change) + self._exchange(0, change)
        return self.scale * np.asarray(out)

    def _exchange(self, spin: int, change: np.ndarray) -> np.ndarray:
        d = torch.from_numpy(change)[..., self.points].to(self.device)
        vrho, vgrad = self.exchange[spin](d[:, 0], d[:, 1:].mT)
        out = torch.zeros(change.shape, dtype=torch.float64)
        out[..., self.points] = torch.cat([vrho[:, None], vgrad.mT], 1).cpu()
        return self.n_spin * out.numpy()


class Responding(Deorbitalizing):
    """Mixin before a molecular integrator: PySCF's functions for second derivatives of E_xc."""

    _grid_cache: Callable[..., Any]
    _density: Callable[..., np.ndarray]
    _potential_matrix: Callable[..., np.ndarray]

    def cache_xc_kernel(
        self,
        mol: Any,
        grids: Any,
        xc_code: str,
        mo_coeff: np.ndarray,
        mo_occ: np.ndarray,
        spin: int = 0,
        max_memory: float = 2000,
    ) -> tuple[np.ndarray, None, XCKernel]:
        """ρ and the kernel at the density of orbitals; no vxc, which has no use without points."""
        unrestricted = np.ndim(mo_coeff[0]) == 2
        orbitals = (
            list(zip(mo_coeff, mo_occ, strict=True)) if unrestricted else [(mo_coeff, mo_occ)]
        )
        dms = np.array([(c * n) @ c.conj().T for c, n in orbitals])
        return self.cache_xc_kernel1(
            mol, grids, xc_code, dms if unrestricted else dms[0], spin, max_memory
        )

    def cache_xc_kernel1(
        self,
        mol: Any,
        grids: Any,
        xc_code: str,
        dm: np.ndarray,
        spin: int = 0,
        max_memory: float = 2000,
    ) -> tuple[np.ndarray, None, XCKernel]:
        """ρ and the kernel at a density matrix, or at one of each spin."""
        cache = self._grid_cache(mol, grids, xc_code, max_memory)
        cache.xc.functional = cache.xc.functional.double()
        rho = self._trial_density(cache, np.reshape(dm, (-1, 1, mol.nao, mol.nao)))[:, 0]
        if spin and len(rho) == 1:
            rho = np.repeat(rho / 2, 2, axis=0)
        return rho if spin else rho[0], None, XCKernel(cache.xc, rho)

    def nr_rks_fxc(
        self,
        mol: Any,
        grids: Any,
        xc_code: str,
        dm0: Any,
        dms: np.ndarray,
        relativity: int = 0,
        hermi: int = 0,
        rho0: np.ndarray | None = None,
        vxc: None = None,
        fxc: XCKernel | None = None,
        max_memory: float = 2000,
        verbose: Any = None,
    ) -> np.ndarray:
        """Change of V_xc for changes ``dms`` of a closed shell's density matrix, as in PySCF."""
        fxc = fxc or self.cache_xc_kernel1(mol, grids, xc_code, dm0, 0, max_memory)[2]
        sets = np.reshape(dms, (1, -1, mol.nao, mol.nao))
        return self._apply(mol, grids, xc_code, sets, fxc, max_memory)[0].reshape(np.shape(dms))

    def nr_uks_fxc(
        self,
        mol: Any,
        grids: Any,
        xc_code: str,
        dm0: Any,
        dms: np.ndarray,
        relativity: int = 0,
        hermi: int = 0,
        rho0: np.ndarray | None = None,
        vxc: None = None,
        fxc: XCKernel | None = None,
        max_memory: float = 2000,
        verbose: Any = None,
    ) -> np.ndarray:
        """Change of V_xc of both spins for changes of both spins' density matrices."""
        if fxc is None:
            dm0 = np.array(numint._format_uks_dm(dm0))
            fxc = self.cache_xc_kernel1(mol, grids, xc_code, dm0, 1, max_memory)[2]
        channels = np.array(numint._format_uks_dm(dms))
        sets = channels.reshape(2, -1, mol.nao, mol.nao)
        return self._apply(mol, grids, xc_code, sets, fxc, max_memory).reshape(channels.shape)

    def nr_rks_fxc_st(
        self,
        mol: Any,
        grids: Any,
        xc_code: str,
        dm0: Any,
        dms_alpha: np.ndarray,
        hermi: int = 0,
        singlet: bool = True,
        rho0: np.ndarray | None = None,
        vxc: None = None,
        fxc: XCKernel | None = None,
        max_memory: float = 2000,
        verbose: Any = None,
    ) -> np.ndarray:
        """Change of V_xc of spin up for changes of a closed shell's spin-up density matrix.

        That of spin down changes by the same (``singlet``) or by the opposite.
        """
        fxc = fxc or self.cache_xc_kernel1(mol, grids, xc_code, dm0, 1, max_memory)[2]
        sets = np.reshape(dms_alpha, (1, -1, mol.nao, mol.nao))
        out = self._apply(mol, grids, xc_code, sets, fxc, max_memory, singlet)
        return out[0].reshape(np.shape(dms_alpha))

    nr_fxc = get_fxc = numint.NumInt.nr_fxc

    def _apply(
        self,
        mol: Any,
        grids: Any,
        xc_code: str,
        dms: np.ndarray,
        kernel: XCKernel,
        max_memory: float,
        singlet: bool | None = None,
    ) -> np.ndarray:
        """Matrices of the kernel, some density matrices (n_spin, n_set, nao, nao) at a time."""
        cache = self._grid_cache(mol, grids, xc_code, max_memory)
        each = TRIAL_ARRAYS * len(dms) * 4 * grids.weights.size * 8e-6
        step = max(1, int(max_memory / each))
        parts = []
        for start in range(0, dms.shape[1], step):
            change = self._trial_density(cache, dms[:, start : start + step])
            if singlet is None:
                wv = kernel(change)
            else:
                wv = kernel.spin_adapted(change[0], singlet)[None]
            parts.append(self._potential_matrix(cache, wv))
        return np.concatenate(parts, axis=1)

    def _trial_density(self, cache: Any, dms: np.ndarray) -> np.ndarray:
        """(n_spin, n_set, 4, n_points), of real matrices."""
        if np.iscomplexobj(dms):
            raise UnsupportedError(
                "Response to complex density matrices is not available for a deorbitalized "
                "functional; use real orbitals."
            )
        return self._density(cache, list(dms))


def _libxc_kernel(xc_code: str, rho: np.ndarray) -> np.ndarray:
    """fxc of a GGA of libxc, (n_spin, 4, n_spin, 4, n_points)."""
    plain = numint.NumInt()
    if len(rho) == 1:
        fxc = plain.eval_xc_eff(xc_code, rho[0], deriv=2, xctype="GGA", spin=0)[2]
        return np.asarray(fxc)[None, :, None]
    return np.asarray(plain.eval_xc_eff(xc_code, rho, deriv=2, xctype="GGA", spin=1)[2])
