"""Analytic nuclear gradients: PySCF's own, with what the surrogate adds to them.

With basis functions and tokens on nuclei at R_A, and points r_j with weights w_j,

    dE_xc/dR_A = Σ_j (∂E/∂ρ_j dρ_j/dR_A + ∂E/∂∇ρ_j · d∇ρ_j/dR_A) + ∂E/∂R_A
               + Σ_{j on A} dE/dr_j + Σ_j ∂E/∂w_j dw_j/dR_A      (grid response)

The first sum is that of every GGA (Pulay terms of the basis). The second term, the tokens' motion
at fixed points, is always there. Points and weights move with ``grid_response``, as in PySCF, where
it is off unless asked for; here it is on for molecules, for without it errors are larger than a
meta-GGA's (0007).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyscf import lib
from pyscf.dft import gen_grid, numint
from pyscf.grad import rks, roks, uks  # noqa: F401  (they register with the objects)
from pyscf.gto.eval_gto import BLKSIZE

from taufree.hosts.exchange_correlation import Partials
from taufree.hosts.pbc_gradients import GGA_FACTORS, DeorbitalizedKGradients

BLOCK_MB = 100
"""Memory of AO values and their ten derivatives at a time."""


class DeorbitalizedGradients:
    """Mixin over PySCF's Gradients of RKS, UKS and ROKS, density-fitted or not."""

    __name_mixin__ = "Deorbitalized"
    base: Any
    mol: Any
    grids: Any
    grid_response: bool
    get_j: Any

    def get_veff(self, mol: Any = None, dm: Any = None) -> Any:
        """Derivative of Coulomb and exchange-correlation matrices, tagged with forces on atoms."""
        mol = self.mol if mol is None else mol
        dm = self.base.make_rdm1() if dm is None else dm
        grids = self.base.grids if self.grids is None else self.grids
        self.base._numint.check(self.base.xc)
        spins = np.asarray(dm).reshape(-1, mol.nao, mol.nao)
        xc = xc_gradient(self.base._numint, mol, grids, spins, self.grid_response)
        coulomb = self.get_j(mol, dm)
        vhf = xc.matrix.reshape(*np.shape(dm)[:-2], 3, mol.nao, mol.nao)
        vhf = vhf + (coulomb[0] + coulomb[1] if np.ndim(dm) == 3 else coulomb)
        tags = {"exc1_grid": xc.grid, "exc1_tokens": xc.tokens}
        if getattr(self, "auxbasis_response", False):
            tags["aux"] = coulomb.aux.sum((0, 1))
        return lib.tag_array(vhf, **tags)

    def extra_force(self, atom_id: int, envs: dict[str, Any]) -> Any:
        """Motion of the tokens, and what PySCF adds (grid and auxiliary basis)."""
        tokens = envs["vhf"].exc1_tokens[atom_id]
        return super().extra_force(atom_id, envs) + tokens  # type: ignore[misc]


def deorbitalized(gradients: Any) -> Any:
    """PySCF's Gradients object of a deorbitalized one, taught what the surrogate adds."""
    if hasattr(gradients, "cell"):
        return lib.set_class(gradients, (DeorbitalizedKGradients, type(gradients)))
    gradients.grid_response = True
    return lib.set_class(gradients, (DeorbitalizedGradients, type(gradients)))


@dataclass(frozen=True)
class XCGradient:
    """``matrix`` (n_spin, 3, nao, nao), −⟨∇μ|v_xc|ν⟩; ``tokens`` and ``grid`` (n_atoms, 3)."""

    matrix: np.ndarray
    tokens: np.ndarray
    grid: np.ndarray


def xc_gradient(ni: Any, mol: Any, grids: Any, dms: np.ndarray, grid_response: bool) -> XCGradient:
    """Terms of dE_xc/dR for spin density matrices (n_spin, nao, nao)."""
    if grids.coords is None:
        grids.build(with_non0tab=True)
    if grid_response:
        grids = copy.copy(grids)
        grids.build(sort_grids=False)  # atom by atom, as PySCF gives derivatives of the weights
    partials = ni.partials(mol, grids, dms)
    tokens = np.zeros((mol.natm, 3))
    tokens[mol.atom_charges() > 0] = partials.centers
    matrix, grid = np.zeros((len(dms), 3, mol.nao, mol.nao)), np.zeros((mol.natm, 3))
    if not grid_response:
        _add_matrix(matrix, mol, grids, partials, slice(0, len(grids.weights)))
        return XCGradient(-matrix, tokens, grid)
    stop = 0
    for atom, (coords, _, weights) in enumerate(rks.grids_response_cc(grids)):
        points = slice(stop, stop := stop + len(coords))
        part = np.zeros_like(matrix)
        _add_matrix(part, mol, grids, partials, points)
        grid[atom] += 2 * np.einsum("sxij,sji->x", part, dms) + partials.points[points].sum(0)
        grid += np.einsum("j,axj->ax", partials.weights[points], weights)
        matrix += part
    return XCGradient(-matrix, tokens, grid)


def _add_matrix(
    matrix: np.ndarray, mol: Any, grids: Any, partials: Partials, points: slice
) -> None:
    """Add Σ_j ∇μ v ν over some points, with the GGA-like v of ``partials``."""
    block = max(1, int(BLOCK_MB * 1e6 / (80 * mol.nao * BLKSIZE))) * BLKSIZE
    ao_loc = mol.ao_loc_nr()
    for start in range(points.start, points.stop, block):
        part = slice(start, min(start + block, points.stop))
        coords = grids.coords[part]
        mask = gen_grid.make_mask(mol, coords)
        ao = numint.eval_ao(mol, coords, deriv=2, non0tab=mask, cutoff=grids.cutoff)
        for s, wv in enumerate(partials.values[:, :, part] * GGA_FACTORS):
            rks._gga_grad_sum_(matrix[s], mol, ao, wv, mask, ao_loc)
