"""Forces and stress of crystals: PySCF's own for a GGA, with what the surrogate adds to them.

Points of the uniform grid stay where they are when nuclei move, and move with the cell under
strain, r → (1 + ε) r. In both cases the derivative is that of the energy as it is computed.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from pyscf.grad import rks
from pyscf.pbc import dft
from pyscf.pbc.df.fft import FFTDF
from pyscf.pbc.grad import krks_stress, kuks_stress
from pyscf.pbc.lib.kpts import KPoints

from taufree.errors import UnsupportedError
from taufree.hosts.exchange_correlation import Partials

GGA_FACTORS = np.array([[0.5], [1], [1], [1]])
"""Of ∂E/∂ρ and ∂E/∂∇ρ when bra and ket are added at the end."""


def refuse_unsupported(mf: Any) -> None:
    """Raise `UnsupportedError` for crystals whose forces are not available.

    PySCF differentiates Coulomb integrals on Fourier grids only, at explicit k-points.
    """
    if not isinstance(mf, dft.krks.KRKS | dft.kuks.KUKS) or isinstance(mf.kpts, KPoints):
        raise UnsupportedError(
            f"Forces and stress of {type(mf).__name__} are not available for crystals: use "
            "pbc.dft.KRKS(cell, kpts) or pbc.dft.KUKS(cell, kpts) with kpts = cell.make_kpts(mesh) "
            "(mesh [1, 1, 1] for Γ alone)."
        )
    if not hasattr(mf._numint, "partials"):
        raise UnsupportedError(
            "Forces and stress are not available with multigrid integration: leave it out."
        )
    if not mf.cell._pseudo or type(mf.with_df) is not FFTDF:
        raise UnsupportedError(
            "Forces and stress of crystals need pseudopotentials and Fourier integrals: use a GTH "
            "basis with cell.pseudo = 'gth-pbe' and no density fitting, or differences of energies."
        )


class DeorbitalizedKGradients:
    """Mixin over PySCF's Gradients of KRKS and KUKS."""

    __name_mixin__ = "Deorbitalized"
    base: Any
    cell: Any
    grids: Any
    grid_response: bool
    get_j: Any

    def get_veff(self, dm: Any = None, kpts: Any = None) -> np.ndarray:
        """Derivative of Coulomb and exchange-correlation matrices, (3, [2,] n_k, nao, nao)."""
        if self.grid_response:
            raise UnsupportedError("The uniform grid of a crystal does not move: no grid_response.")
        dm = np.asarray(self.base.make_rdm1() if dm is None else dm)
        coulomb = self.get_j(dm, self.base.kpts)
        partials = self._partials(dm)
        matrix = np.zeros((3, *dm.shape), dtype=dm.dtype)
        sets = matrix[:, None] if dm.ndim == 3 else matrix  # a view: (3, n_spin, n_k, nao, nao)
        cell, ni, stop = self.cell, self.base._numint, 0
        for aos, _, mask, weights, _ in ni.block_loop(
            cell, self.base.grids, cell.nao, 2, self.base.kpts
        ):
            points = slice(stop, stop := stop + len(weights))
            for s, wv in enumerate(partials.values[:, :, points] * GGA_FACTORS):
                for k, ao in enumerate(aos):
                    rks._gga_grad_sum_(sets[:, s, k], cell, ao, wv, mask, cell.ao_loc_nr())
        self._tokens = np.zeros((cell.natm, 3))
        self._tokens[cell.atom_charges() > 0] = partials.centers
        return (coulomb.sum(1, keepdims=True) if dm.ndim == 4 else coulomb) - matrix

    def extra_force(self, atom_id: int, envs: dict[str, Any]) -> Any:
        """Motion of the tokens, at points that stay."""
        return super().extra_force(atom_id, envs) + self._tokens[atom_id]  # type: ignore[misc]

    def get_stress(self) -> np.ndarray:
        """(1/V) ∂E/∂ε, (3, 3), hartree/bohr³."""
        base = self.base.copy()
        dm = np.asarray(base.make_rdm1())
        partials = self._partials(dm)
        cache = base._numint._cache
        rho = cache.density(dm.reshape(-1, 1, *dm.shape[-3:]))[:, 0, 0].sum(0)
        base._numint = copy.copy(base._numint)
        base._numint.eval_xc_eff = _Frozen(partials, cache.xc.weights, rho)
        gradients = copy.copy(self)
        gradients.base = base
        stress = krks_stress if dm.ndim == 3 else kuks_stress
        found: np.ndarray = stress.kernel(gradients) + partials.strain / self.cell.vol
        return found

    def _partials(self, dm: np.ndarray) -> Partials:
        self.base._numint.check(self.base.xc)
        return self.base._numint.partials(self.cell, self.base.grids, self.base.kpts, dm)


class _Frozen:
    """In place of libxc, what E_xc of the whole density gives at each point.

    PySCF's stress asks for energies per electron and derivatives, of one density on all points, and
    takes Σ_j ρ_j ε_j w_j as what the growth of the weights adds: here that is Σ_j w_j ∂E/∂w_j.
    """

    def __init__(self, partials: Partials, weights: np.ndarray, rho: np.ndarray) -> None:
        self.exc = np.divide(partials.weights, rho, out=np.zeros_like(rho), where=rho > 0)
        vxc = partials.values / weights
        self.vxc = vxc[0] if len(vxc) == 1 else vxc

    def __call__(self, xc_code: str, rho: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        assert rho.shape[-1] == len(self.exc), "all points at once"
        return self.exc, self.vxc, None, None
