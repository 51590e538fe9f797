"""Import of densities that FHI-aims writes with its keyword ``rho_and_derivs_on_grid``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.units import Bohr
from numpy.typing import NDArray

from taufree.data.generate import RHO_MIN, parent_exchange
from taufree.data.store import ReferenceDensity
from taufree.data.systems import System
from taufree.errors import UserError
from taufree.quantities import GridDensity

COORDS = ("grid_coord_x", "grid_coord_y", "grid_coord_z")
GRADIENT = ("rho_gradient_x", "rho_gradient_y", "rho_gradient_z")
COLUMNS = ("rho", *GRADIENT, "tau", "weight", *COORDS)
ELECTRONS_TOLERANCE = 1e-3  # relative: a wrong unit, a missing atom or spin is far above
TAU_TOLERANCE = 1e-3  # of ∫τ that may lie below τ_W: rounding in the file, not a factor of two


def read_fhi_aims(
    paths: Sequence[Path], atoms: Atoms, charge: int = 0, parent: str = "MS2"
) -> ReferenceDensity:
    """Density, τ and the parent's exchange from the text files of one FHI-aims calculation.

    The columns, in atomic units, are found by their names in a ``#`` line (``COLUMNS``). FHI-aims
    leaves out the ½ of τ = ½ Σ|∇φ|², which is put in here. Points of weight 0 are dropped.

    Parameters
    ----------
    paths
        One file with the total density, or two with the spin channels ↑ and ↓ on the same grid.
    atoms
        Geometry (in ångström, as everywhere in ASE) of the molecule.

    Returns
    -------
    ReferenceDensity
        With no ``lapl``, which the files lack, and ``e_tot`` not a number.

    Raises
    ------
    UserError
        If a file is unreadable or lacks a column, if the density does not integrate to the number
        of electrons (to 0.1%), or if τ lies below the von Weizsäcker τ_W = |∇ρ|²/(8ρ).
    """
    system = System.from_ase(paths[0].stem, atoms, charge=charge, kind="fhi_aims", parent=parent)
    channels = [_read_columns(path) for path in paths]
    for path, channel in zip(paths[1:], channels[1:], strict=True):
        if any(not np.array_equal(channel[c], channels[0][c]) for c in (*COORDS, "weight")):
            raise UserError(f"{path}: its grid is not that of {paths[0]}")
    rho = np.array([c["rho"] for c in channels])
    keep = (channels[0]["weight"] != 0) & np.any(rho > RHO_MIN, axis=0)
    rho = rho[:, keep]
    weights = channels[0]["weight"][keep]
    coords = _vectors(channels[0], COORDS)[keep]
    grad_rho = np.array([_vectors(c, GRADIENT)[keep] for c in channels])
    tau = 0.5 * np.array([c["tau"][keep] for c in channels])

    _check_electrons(paths[0], float(np.sum(rho @ weights)), system.n_electrons)
    _check_tau(paths[0], rho, grad_rho, tau, weights)
    exchange = parent_exchange(rho, grad_rho, tau, parent)
    fields = dict(coords=coords, weights=weights, rho=rho, grad_rho=grad_rho)
    return ReferenceDensity(
        density=GridDensity(
            **{key: torch.from_numpy(value) for key, value in fields.items()},
            centers=torch.from_numpy(atoms.positions / Bohr),
        ),
        tau=torch.from_numpy(tau),
        lapl=None,
        **{key: torch.from_numpy(value) for key, value in exchange.items()},
        name=system.name,
        formula=system.formula,
        kind=system.kind,
        parent=parent,
        numbers=system.numbers,
        charge=charge,
        core_electrons=0,
        spin=round(float((rho[0] - rho[-1]) @ weights)),
        grid_level=0,
        density_kind="converged",
        e_tot=float("nan"),
    )


Columns = dict[str, NDArray[np.float64]]


def _read_columns(path: Path) -> Columns:
    try:
        lines = path.read_text("utf-8").splitlines()
        headers = [line.lstrip("# ").split() for line in lines if line.lstrip().startswith("#")]
        table = np.loadtxt(lines, comments="#", ndmin=2)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a table of numbers: {error}") from error
    names = max(headers, key=lambda names: len({*names} & {*COLUMNS}), default=[])
    missing = [column for column in COLUMNS if column not in names]
    if missing:
        raise UserError(f"{path}: no '#' line names the columns {', '.join(missing)}")
    if table.shape[1] != len(names):
        raise UserError(f"{path}: {len(names)} columns are named but {table.shape[1]} are there")
    if not np.isfinite(table).all():
        raise UserError(f"{path}: some values are not finite numbers")
    return {name: table[:, names.index(name)] for name in COLUMNS}


def _vectors(columns: Columns, names: tuple[str, ...]) -> NDArray[np.float64]:
    return np.stack([columns[name] for name in names], axis=-1)


def _check_electrons(path: Path, found: float, expected: int) -> None:
    if abs(found - expected) > ELECTRONS_TOLERANCE * expected:
        raise UserError(
            f"{path}: the density holds {found:.4f} electrons, the geometry and charge {expected}; "
            "check units, charge and that all spin channels are given"
        )


def _check_tau(
    path: Path,
    rho: NDArray[np.float64],
    grad_rho: NDArray[np.float64],
    tau: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> None:
    tau_w = np.sum(grad_rho**2, axis=-1) / (8 * np.maximum(rho, RHO_MIN))
    below = np.sum(np.maximum(tau_w - tau, 0.0) @ weights) / np.sum(tau @ weights)
    if not below < TAU_TOLERANCE:
        raise UserError(
            f"{path}: τ is below |∇ρ|²/(8ρ), so τ or the gradient has a wrong factor; "
            "τ must be Σ|∇φ|², as FHI-aims writes it"
        )
