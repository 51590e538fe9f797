"""Parent densities from PySCF: one self-consistent calculation, then everything on its grids."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyscf import dft, gto

from taufree.data import orbitals, periodic
from taufree.data.splits import split_of
from taufree.data.systems import KINDS, System
from taufree.physics.parents import parent_named

Array = NDArray[np.float64]

RHO_MIN = 1e-12  # bohr⁻³: points with less in every spin channel, or weight 0, are left out
MISSING = 2e-3  # largest relative error of ∫ρ: a density that its grid does not hold is of no use
ITERATES = 3  # SCF cycles whose densities are kept beside the first guess
RESPONSES = 2  # perturbed densities around the converged one, to train on
ROTATIONS = 3  # those of turned orbitals, likewise


class NotConvergedError(RuntimeError):
    """No method that was tried converged."""


class GridError(RuntimeError):
    """The grid does not integrate the density to its number of electrons."""


@dataclass(frozen=True)
class ParentRecord:
    """What one calculation of the parent leaves behind.

    ``orbitals`` has an L of `taufree.data.orbitals.factor` for every kind of density:
    ``converged``; of a molecule also ``initial`` (the first guess) and ``cycle1`` to ``cycle3``; to
    train on, also ``response1``, ``response2`` and ``rotated1`` to ``rotated3``, see
    `taufree.data.orbitals`.
    ``densities`` has the arrays of `grid_record` for every (kind, grid level): the converged
    density on all levels, the others on the coarsest. ``e_tot`` belongs to the converged density,
    and ``cycles`` counts those of every method it took.
    """

    system: System
    e_tot: float
    cycles: int
    orbitals: dict[str, Array]
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
        if not system.period and cycles == 1:
            matrices["initial"] = np.array(scf["dm_last"])
        if not system.period and cycles <= ITERATES:
            matrices[f"cycle{cycles}"] = np.array(scf["dm"])

    mf = converge_parent(system, keep)
    matrices["converged"] = np.asarray(mf.make_rdm1())
    if not system.period and trains(system):
        rng = np.random.default_rng(zlib.crc32(system.name.encode()))
        for i in range(RESPONSES):
            matrices[f"response{i + 1}"] = orbitals.perturbed(mf, rng)
        for i in range(ROTATIONS):
            matrices[f"rotated{i + 1}"] = orbitals.rotated(mf, rng)
    factors = {kind: orbitals.factor(dm) for kind, dm in matrices.items()}
    return ParentRecord(
        system, float(mf.e_tot), cycles, factors, densities(system, mf, factors, levels)
    )


def densities(
    system: System, mf: dft.rks.RKS, factors: dict[str, Array], levels: Iterable[int]
) -> dict[tuple[str, int], dict[str, Array]]:
    """`grid_record` of every kind of density: the converged one on all levels, others on the first.

    Raises
    ------
    GridError
        If a grid loses electrons.
    """
    found: dict[tuple[str, int], dict[str, Array]] = {}
    for i, level in enumerate(levels):
        kinds = [kind for kind in factors if kind == "converged" or i == 0]
        records = grid_record(mf, [factors[kind] for kind in kinds], level, system.parent)
        found |= {(kind, level): record for kind, record in zip(kinds, records, strict=True)}
    for (kind, level), arrays in found.items():
        if kind == "initial":  # PySCF's guess, projected on the basis, need not hold all electrons
            continue
        electrons = float((arrays["rho"] @ arrays["weights"]).sum())
        if abs(electrons - system.n_electrons) > MISSING * system.n_electrons:
            raise GridError(
                f"{electrons:.4f} of {system.n_electrons} electrons on the grid of level {level}"
            )
    return found


def converge_parent(
    system: System,
    callback: Callable[[dict[str, Any]], None] | None = None,
    level: int | None = None,
) -> dft.rks.RKS:
    """Density-fitted RKS or UKS of the parent functional with PySCF's defaults.

    If the default DIIS does not converge, a level shift and then second-order SCF go on from
    where it stopped. ``callback`` is called in every cycle of each. Of a crystal only the default
    is tried, see `taufree.data.periodic`. ``level`` is the grid's, if not that of `mean_field`.
    """
    mf = mean_field(system)
    if level is not None:
        mf.grids.level = level
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


def trains(system: System) -> bool:
    """Whether a system is in the training split; those of evaluations are in none."""
    return system.kind in KINDS and split_of(system.formula) == "train"


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
    if trains(system):
        mf.grids.level = 1  # only its densities are of use
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


def grid_record(
    mf: dft.rks.RKS, factors: Sequence[Array], level: int, parent: str
) -> list[dict[str, Array]]:
    """Densities, orbitals' τ and the parent's exchange on the grid of ``level``.

    Parameters
    ----------
    factors
        L of each density, see `taufree.data.orbitals.factor`: (n_ao, n_occupied), in a crystal
        (n_k, n_ao, n_occupied), before that the spin channels if there are two.

    Returns
    -------
    list of dict
        On the points that any of the densities reaches: ``coords`` (n_points, 3), ``weights``
        (n_points,); per spin channel ``rho``, ``lapl``, ``tau`` (n_spin, n_points), ``grad_rho``
        (n_spin, n_points, 3), and the arrays of
        `parent_exchange`. τ = ½ Σ|∇φ|².
    """
    make = periodic.fields if hasattr(mf, "kpts") else _fields
    coords, weights, densities = make(mf, factors, level)
    keep = np.any([field[:, 0] > RHO_MIN for field in densities], axis=(0, 1)) & (weights != 0)
    coords, weights = coords[keep], weights[keep]
    return [_grid_record(coords, weights, field[..., keep], parent) for field in densities]


def _grid_record(coords: Array, weights: Array, field: Array, parent: str) -> dict[str, Array]:
    rho, grad_rho = field[:, 0], field[:, 1:4].transpose(0, 2, 1)
    lapl, tau = field[:, 4], field[:, 5]
    return {
        "coords": coords,
        "weights": weights,
        "rho": rho,
        "grad_rho": grad_rho,
        "lapl": lapl,
        "tau": tau,
        **parent_exchange(rho, grad_rho, tau, parent),
    }


def _fields(
    mf: dft.rks.RKS, factors: Sequence[Array], level: int
) -> tuple[Array, Array, list[Array]]:
    """Points, weights, and of each density ρ, ∇ρ, ∇²ρ, τ by spin, (n_spin, 6, n_points)."""
    grids = dft.gen_grid.Grids(mf.mol)
    grids.level = level
    grids.build()
    channels = [f.reshape(-1, *f.shape[-2:]) for f in factors]
    parts: list[list[Array]] = []
    for ao, *_ in dft.numint.NumInt().block_loop(mf.mol, grids, mf.mol.nao, deriv=2):
        parts.append([np.array([orbitals.fields([(ao, o)]) for o in c]) for c in channels])
    together = [np.concatenate(p, axis=-1) for p in zip(*parts, strict=True)]
    return grids.coords, grids.weights, together


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
