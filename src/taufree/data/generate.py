"""Parent densities from PySCF: one self-consistent calculation, then everything on its grids."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyscf import dft, gto

from taufree.data.systems import System
from taufree.physics.parents import parent_named

Array = NDArray[np.float64]

RHO_MIN = 1e-12  # bohr⁻³: points with less in every spin channel, or weight 0, are left out
ITERATES = 3  # SCF cycles whose densities are kept beside the first guess


class NotConvergedError(RuntimeError):
    """Neither DIIS, nor a level shift, nor second-order SCF converged."""


@dataclass(frozen=True)
class ParentRecord:
    """What one calculation of the parent leaves behind.

    ``densities`` has one entry for every (density kind, grid level): ``converged``, and for a
    system with ``iterates`` also ``initial`` (the first guess) and ``cycle1`` to ``cycle3``. The
    arrays are those of `grid_record`; ``e_tot`` belongs to the converged density, and
    ``cycles`` counts those of every method it took.
    """

    system: System
    e_tot: float
    cycles: int
    densities: dict[tuple[str, int], dict[str, Array]]


def calculate(system: System, levels: Iterable[int]) -> ParentRecord:
    """Converge the parent for ``system`` and evaluate its densities on the grids of ``levels``.

    Raises
    ------
    NotConvergedError
        If the self-consistent calculation fails by every method tried.
    """
    matrices: dict[str, Array] = {}
    cycles = 0

    def keep(scf: dict[str, Any]) -> None:
        nonlocal cycles
        cycles += 1
        if system.iterates and cycles == 1:
            matrices["initial"] = np.array(scf["dm_last"])
        if system.iterates and cycles <= ITERATES:
            matrices[f"cycle{cycles}"] = np.array(scf["dm"])

    mf = converge_parent(system, keep)
    matrices["converged"] = np.asarray(mf.make_rdm1())
    densities = {
        (kind, level): grid_record(mf, dm, level, system.parent)
        for level in levels
        for kind, dm in matrices.items()
    }
    return ParentRecord(system, float(mf.e_tot), cycles, densities)


def converge_parent(
    system: System, callback: Callable[[dict[str, Any]], None] | None = None
) -> dft.rks.RKS:
    """Density-fitted RKS or UKS of the parent functional with PySCF's defaults.

    If the default DIIS does not converge, a level shift and then second-order SCF go on from
    where it stopped. ``callback`` is called in every cycle of each.
    """
    mf = mean_field(system)
    mf.callback = callback
    mf.kernel()
    if not mf.converged:
        mf.level_shift, mf.max_cycle = 0.3, 200
        mf.kernel(mf.make_rdm1())
        mf.level_shift = 0.0
    if not mf.converged:
        mf = mf.newton()
        mf.kernel(mf.mo_coeff, mf.mo_occ)
    if not mf.converged:
        raise NotConvergedError("no convergence by DIIS, level shift or second-order SCF")
    return mf


def mean_field(system: System) -> dft.rks.RKS:
    """Density-fitted RKS or, with unpaired electrons, UKS of the parent; PySCF's defaults."""
    mol = gto.M(
        atom=list(zip(system.symbols, system.positions, strict=True)),
        unit="Bohr",
        basis=system.basis,
        charge=system.charge,
        spin=system.spin,
        verbose=0,
    )
    mf = (dft.UKS if system.spin else dft.RKS)(mol, xc=system.parent).density_fit()
    mf.grids.level = 3
    mf.chkfile = None
    if any(system.field):
        _apply_field(mf, np.array(system.field))
    return mf


def _apply_field(mf: dft.rks.RKS, field: Array) -> None:
    """Add the energy of electrons (+F·r) and nuclei (−Z F·R) in the uniform field F."""
    mol = mf.mol
    hcore = mf.get_hcore() + np.einsum("x,xij->ij", field, mol.intor("int1e_r"))
    nuclear = mf.energy_nuc() - float(mol.atom_charges() @ mol.atom_coords() @ field)
    mf.get_hcore = lambda *_: hcore
    mf.energy_nuc = lambda *_: nuclear


def grid_record(mf: dft.rks.RKS, dm: Array, level: int, parent: str) -> dict[str, Array]:
    """Density, orbitals' τ and the parent's exchange on the Becke grid of ``level``.

    Returns
    -------
    dict
        ``coords`` (n_points, 3), ``weights`` (n_points,); per spin channel ``rho``, ``lapl``,
        ``tau`` (n_spin, n_points), ``grad_rho`` (n_spin, n_points, 3), and the arrays of
        `parent_exchange`.
        τ = ½ Σ_ij D_ij ∇χ_i·∇χ_j, which is ½ Σ|∇φ|² for the density matrix of orbitals.
    """
    grids = dft.gen_grid.Grids(mf.mol)
    grids.level = level
    grids.build()
    ni = dft.numint.NumInt()
    dms = np.asarray(dm).reshape(-1, *np.shape(dm)[-2:])
    blocks = [
        [ni.eval_rho(mf.mol, ao, d, mask, xctype="MGGA", hermi=1, with_lapl=True) for d in dms]
        for ao, mask, _, _ in ni.block_loop(mf.mol, grids, dms.shape[-1], deriv=2)
    ]
    field = np.concatenate(blocks, axis=-1)  # (n_spin, 6, n_points): rho, grad(3), lapl, tau
    keep = np.any(field[:, 0] > RHO_MIN, axis=0) & (grids.weights != 0)
    field = field[..., keep]
    rho, grad_rho = field[:, 0], field[:, 1:4].transpose(0, 2, 1)
    lapl, tau = field[:, 4], field[:, 5]
    return {
        "coords": grids.coords[keep],
        "weights": grids.weights[keep],
        "rho": rho,
        "grad_rho": grad_rho,
        "lapl": lapl,
        "tau": tau,
        **parent_exchange(rho, grad_rho, tau, parent),
    }


def parent_exchange(rho: Array, grad_rho: Array, tau: Array, parent: str) -> dict[str, Array]:
    """Evaluate the parent's exchange energy density and its partial derivatives by libxc.

    Each spin channel σ is evaluated by the unpolarized functional at 2ρσ, so that
    E_x = ½ Σσ ∫ e_x[2ρσ] (exact spin scaling); a closed shell's single channel is the total
    density and E_x = ∫ e_x[ρ].

    Returns
    -------
    dict
        ``exc`` = e_x (energy per volume), ``vrho`` = ∂e_x/∂ρ, ``vsigma`` = ∂e_x/∂σ, ``vtau`` =
        ∂e_x/∂τ, each (n_spin, n_points) and, for two channels, at (2ρσ, |2∇ρσ|², 2τσ).
    """
    code = parent_named(parent).exchange
    scale = len(rho)  # 2 ρσ, or the total density itself
    out: dict[str, list[Array]] = {"exc": [], "vrho": [], "vsigma": [], "vtau": []}
    for n, grad, t in zip(rho, grad_rho, tau, strict=True):
        field = scale * np.vstack([n, grad.T, t])
        exc, vxc = dft.libxc.eval_xc(code, field, spin=0, deriv=1)[:2]
        out["exc"].append(exc * field[0])
        for key, value in zip(("vrho", "vsigma", "vtau"), (vxc[0], vxc[1], vxc[3]), strict=True):
            out[key].append(value)
    return {key: np.array(values) for key, values in out.items()}
