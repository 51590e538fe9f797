"""Parent densities from PySCF: one self-consistent calculation, then everything on its grids."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyscf import dft, gto

from taufree.data import periodic
from taufree.data.splits import split_of
from taufree.data.systems import System
from taufree.physics.parents import parent_named

Array = NDArray[np.float64]

RHO_MIN = 1e-12  # bohr⁻³: points with less in every spin channel, or weight 0, are left out
MISSING = 2e-3  # largest relative error of ∫ρ: a density that its grid does not hold is of no use
ITERATES = 3  # SCF cycles whose densities are kept beside the first guess


class NotConvergedError(RuntimeError):
    """No method that was tried converged."""


class GridError(RuntimeError):
    """The grid does not integrate the density to its number of electrons."""


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
    GridError
        If a grid loses electrons.
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
    for (_, level), arrays in densities.items():
        electrons = float((arrays["rho"] @ arrays["weights"]).sum())
        if abs(electrons - system.n_electrons) > MISSING * system.n_electrons:
            raise GridError(
                f"{electrons:.4f} of {system.n_electrons} electrons on the grid of level {level}"
            )
    return ParentRecord(system, float(mf.e_tot), cycles, densities)


def converge_parent(
    system: System, callback: Callable[[dict[str, Any]], None] | None = None
) -> dft.rks.RKS:
    """Density-fitted RKS or UKS of the parent functional with PySCF's defaults.

    If the default DIIS does not converge, a level shift and then second-order SCF go on from
    where it stopped. ``callback`` is called in every cycle of each. Of a crystal only the default
    is tried, see `taufree.data.periodic`.
    """
    mf = mean_field(system)
    if system.period:
        periodic.converge(mf, system.period, callback)
        if not mf.converged:
            raise NotConvergedError(f"no convergence by DIIS in {mf.max_cycle} cycles")
        return mf
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
    """Density-fitted RKS or, with unpaired electrons, UKS of the parent; PySCF's defaults.

    A crystal's is KRKS or KUKS, see `taufree.data.periodic.mean_field`.
    """
    if system.period:
        return periodic.mean_field(system)
    mol = gto.M(
        atom=list(zip(system.symbols, system.positions, strict=True)),
        unit="Bohr",
        basis=system.basis,
        charge=system.charge,
        spin=system.spin,
        verbose=0,
    )
    mf = (dft.UKS if system.spin else dft.RKS)(mol, xc=system.parent).density_fit()
    mf.grids.level = 1 if split_of(system.formula) == "train" else 3  # only densities train
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
    """Density, orbitals' τ and the parent's exchange on the grid of ``level``.

    Returns
    -------
    dict
        ``coords`` (n_points, 3), ``weights`` (n_points,); per spin channel ``rho``, ``lapl``,
        ``tau`` (n_spin, n_points), ``grad_rho`` (n_spin, n_points, 3), and the arrays of
        `parent_exchange`.
        τ = ½ Σ_ij D_ij ∇χ_i·∇χ_j, which is ½ Σ|∇φ|² for the density matrix of orbitals.
    """
    coords, weights, field = (periodic.fields if hasattr(mf, "kpts") else _fields)(mf, dm, level)
    keep = np.any(field[:, 0] > RHO_MIN, axis=0) & (weights != 0)
    field = field[..., keep]
    rho, grad_rho = field[:, 0], field[:, 1:4].transpose(0, 2, 1)
    lapl, tau = field[:, 4], field[:, 5]
    return {
        "coords": coords[keep],
        "weights": weights[keep],
        "rho": rho,
        "grad_rho": grad_rho,
        "lapl": lapl,
        "tau": tau,
        **parent_exchange(rho, grad_rho, tau, parent),
    }


def _fields(mf: dft.rks.RKS, dm: Array, level: int) -> tuple[Array, Array, Array]:
    """Points, weights, and ρ, ∇ρ, ∇²ρ, τ of each spin channel, (n_spin, 6, n_points)."""
    grids = dft.gen_grid.Grids(mf.mol)
    grids.level = level
    grids.build()
    ni = dft.numint.NumInt()
    dms = np.asarray(dm).reshape(-1, *np.shape(dm)[-2:])
    blocks = [
        [ni.eval_rho(mf.mol, ao, d, mask, xctype="MGGA", hermi=1, with_lapl=True) for d in dms]
        for ao, mask, _, _ in ni.block_loop(mf.mol, grids, dms.shape[-1], deriv=2)
    ]
    return grids.coords, grids.weights, np.concatenate(blocks, axis=-1)


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
