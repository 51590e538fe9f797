"""Forces and stress of crystals: PySCF's own for a GGA, with what the surrogate adds to them.

Points of a grid stay where they are when nuclei move, and move with the cell under strain,
r → (1 + ε) r. On a uniform grid these are the derivatives of the energy as it is computed. Becke's
points follow their atoms: with ``grid_response``, which PySCF does not have for crystals, the
derivatives are those of the energy there too; without, as for molecules, up to the grid's error.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from pyscf.grad import rks
from pyscf.pbc import dft
from pyscf.pbc.df.fft import FFTDF
from pyscf.pbc.dft.numint import eval_ao_kpts
from pyscf.pbc.grad import krks_stress, kuks_stress, rks_stress
from pyscf.pbc.lib.kpts import KPoints

from taufree.errors import UnsupportedError
from taufree.hosts.becke import Images, images
from taufree.hosts.exchange_correlation import Partials

SECOND = np.array([[1, 4, 5, 6], [2, 5, 7, 8], [3, 6, 8, 9]])
"""Where PySCF keeps ∂_b of φ, ∂_xφ, ∂_yφ, ∂_zφ, for b = x, y, z."""
BLOCK_MB = 100
"""Memory of orbital values and their derivatives at a time."""
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
        dm = np.asarray(self.base.make_rdm1() if dm is None else dm)
        coulomb = self.get_j(dm, self.base.kpts)
        grids, partials, images = self._on_grid(dm)
        matrix = np.zeros((3, *dm.shape), dtype=dm.dtype)
        sets = matrix[:, None] if dm.ndim == 3 else matrix  # a view: (3, n_spin, n_k, nao, nao)
        slopes = partials.points.copy()  # dE/dr_j
        cell, ni, stop = self.cell, self.base._numint, 0
        for aos, _, mask, weights, _ in ni.block_loop(cell, grids, cell.nao, 2, self.base.kpts):
            points = slice(stop, stop := stop + len(weights))
            v = partials.values[:, :, points]
            for s, wv in enumerate(v * GGA_FACTORS):
                for k, ao in enumerate(aos):
                    rks._gga_grad_sum_(sets[:, s, k], cell, ao, wv, mask, cell.ao_loc_nr())
            if images is not None:
                for k, ao in enumerate(aos):
                    slopes[points] += _change(ao[SECOND], ao, dm[..., k, :, :], v).T / len(aos)
        self._extra = np.zeros((cell.natm, 3))
        self._extra[cell.atom_charges() > 0] = partials.centers
        if images is not None:
            moved = images.weight_slopes(grids.coords, grids.weights, partials.weights)
            np.add.at(moved, images.owners, slopes)
            np.add.at(self._extra, images.atoms, moved)
        return (coulomb.sum(1, keepdims=True) if dm.ndim == 4 else coulomb) - matrix

    def extra_force(self, atom_id: int, envs: dict[str, Any]) -> Any:
        """Motion of the tokens and, with grid response, of points and weights."""
        return super().extra_force(atom_id, envs) + self._extra[atom_id]  # type: ignore[misc]

    def get_stress(self) -> np.ndarray:
        """(1/V) ∂E/∂ε, (3, 3), hartree/bohr³."""
        dm = np.asarray(self.base.make_rdm1())
        without_xc = copy.copy(self)
        without_xc.base, without_xc.grids = self.base.copy(), None
        without_xc.base.grids = dft.UniformGrids(self.cell)
        without_xc.base._numint = copy.copy(self.base._numint)
        without_xc.base._numint.eval_xc_eff = _no_xc
        stress = krks_stress if dm.ndim == 3 else kuks_stress
        found: np.ndarray = stress.kernel(without_xc) + self._xc_stress(dm)
        return found

    def _xc_stress(self, dm: np.ndarray) -> np.ndarray:
        """Of basis functions, points, weights and tokens.

        A point moves as its own position does or, with grid response, as its nucleus.
        """
        grids, partials, images = self._on_grid(dm)
        cell, kpts, strain = self.cell, self.base.kpts, partials.strain.copy()
        if images is None:
            anchors = grids.coords
            strain += np.eye(3) * float(grids.weights @ partials.weights)  # they grow as the cell
        else:
            anchors = images.centers[images.owners]
            moved = images.weight_slopes(grids.coords, grids.weights, partials.weights)
            strain += moved.T @ images.centers + partials.points.T @ (anchors - grids.coords)
        block = max(1, int(BLOCK_MB * 1e6 / (46 * 16 * cell.nao * len(kpts))))
        for start in range(0, len(grids.weights), block):
            part = slice(start, start + block)
            coords, v = np.ascontiguousarray(grids.coords[part]), partials.values[:, :, part]
            values = eval_ao_kpts(cell, coords, kpts, deriv=2)
            strained = rks_stress._eval_ao_strain_derivatives(cell, coords, kpts, deriv=1)
            for k, (ao, by_strain) in enumerate(zip(values, strained, strict=True)):
                d = dm[..., k, :, :]
                change = _change(by_strain, ao, d, v).sum(-1)
                change += _change(ao[SECOND], ao, d, v) @ anchors[part]
                strain += change / len(kpts)
        return strain / cell.vol

    def _on_grid(self, dm: np.ndarray) -> tuple[Any, Partials, Images | None]:
        """The grid, what E_xc depends on there, and whose points they are if they follow nuclei."""
        ni, grids = self.base._numint, self.base.grids if self.grids is None else self.grids
        ni.check(self.base.xc)
        if grids.coords is None:
            grids.build(with_non0tab=True)
        follows = self.grid_response and isinstance(grids, dft.BeckeGrids)
        owners = images(self.cell, grids) if follows else None
        return grids, ni.partials(self.cell, grids, self.base.kpts, dm), owners


def _change(moved: np.ndarray, ao: np.ndarray, dm: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Σ_n v_n δρ_n of orbitals that change, (..., n_block); ρ_n is ρ, ∇ρ.

    ``moved`` (..., 4, n_block, nao) is δφ, δ∇φ at one k-point, ``ao`` (≥ 4, n_block, nao) φ, ∇φ,
    ``dm`` ([n_spin,] nao, nao), ``v`` (n_spin, 4, n_block).
    """
    total = np.zeros((*moved.shape[:-3], v.shape[-1]))
    for d, wv in zip(dm.reshape(-1, *dm.shape[-2:]), v, strict=True):
        c = ao[:4] @ d
        bra = np.einsum("njm,nj->jm", c, wv).conj()
        ket = (c[0] * wv[1:, :, None]).conj()
        total += 2 * np.einsum("...jm,jm->...j", moved[..., 0, :, :], bra).real
        total += 2 * np.einsum("...njm,njm->...j", moved[..., 1:, :, :], ket).real
    return total


def _no_xc(xc_code: str, rho: np.ndarray, *args: Any, **kwargs: Any) -> Any:
    """In place of libxc: energies per electron and derivatives that are all zero."""
    return np.zeros(rho.shape[-1]), np.zeros_like(rho), None, None
