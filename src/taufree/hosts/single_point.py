"""One structure file, one self-consistent energy: deorbitalized, and beside it the parent's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ase import Atoms
from ase.units import Hartree, kcal, mol
from pyscf import dft
from rich.table import Table

import taufree
from taufree.errors import UnsupportedError
from taufree.hosts.structures import molecule, read_structure

KCAL_PER_HARTREE = Hartree / (kcal / mol)

OnCycle = Callable[[str, int, float], None]
"""Progress: called after each SCF cycle with "deorbitalized" or "parent", cycle, energy."""


@dataclass(frozen=True)
class Settings:
    """How a single point is done; ``spin`` is 2S = N↑ − N↓, ``max_memory`` in MB."""

    basis: str = "def2-tzvp"
    charge: int = 0
    spin: int = 0
    model: str = "ms2"
    potential: Literal["ks", "gks"] = "ks"
    grid_level: int = 3
    density_fit: bool = True
    max_memory: int | None = None


def single_point(
    path: Path, settings: Settings, *, parent: bool = False, on_cycle: OnCycle | None = None
) -> dict[str, Any]:
    """Converge the deorbitalized functional on a structure file and, if asked to, its parent.

    Parameters
    ----------
    path : Path
        Any structure that ASE reads; of several frames the last.
    settings : Settings
        Basis, charge, spin, model, grid.
    parent : bool
        Converge the orbital-dependent parent too, with the same settings.
    on_cycle : callable, optional
        Progress, see ``OnCycle``.

    Returns
    -------
    dict
        ``energy_hartree``, ``converged``, ``cycles``, ``model``, ``potential``, ``n_atoms`` and
        ``wall_s`` (the whole SCF: grids, integrals, cycles); ``parent`` holds the same keys.

    Raises
    ------
    UserError
        The file, basis, charge, spin or model cannot be used.
    UnsupportedError
        The structure is periodic.
    """
    atoms = read_structure(path)
    mf = taufree.deorbitalize(
        mean_field(atoms, settings), model=settings.model, potential=settings.potential
    )
    result: dict[str, Any] = {
        **_converge(mf, "deorbitalized", on_cycle),
        "model": settings.model,
        "potential": settings.potential,
        "n_atoms": len(atoms),
    }
    if parent:
        parent_mf = mean_field(atoms, settings)
        parent_mf.xc = taufree.load_model(settings.model).parent.xc
        result["parent"] = {
            **_converge(parent_mf, "parent", on_cycle),
            "model": parent_mf.xc,
            "potential": "gks",
            "n_atoms": len(atoms),
        }
    return result


def mean_field(atoms: Atoms, settings: Settings) -> dft.rks.RKS:
    """Restricted or, with unpaired electrons, unrestricted Kohn-Sham object of PySCF.

    Raises
    ------
    UserError
        See :func:`taufree.hosts.structures.molecule`.
    UnsupportedError
        The structure is periodic.
    """
    if atoms.pbc.any():
        raise UnsupportedError(
            "periodic structures cannot be calculated yet, only molecules: "
            "to calculate the atoms of this file as a molecule, write them without a cell (xyz)."
        )
    system = molecule(atoms, settings.basis, settings.charge, settings.spin)
    if settings.max_memory is not None:
        system.max_memory = settings.max_memory
    mf = (dft.UKS if settings.spin else dft.RKS)(system)
    if settings.density_fit:
        mf = mf.density_fit()
    mf.grids.level = settings.grid_level
    return mf


def _converge(mf: dft.rks.RKS, name: str, on_cycle: OnCycle | None) -> dict[str, Any]:
    if on_cycle:
        mf.callback = lambda scf: on_cycle(name, scf["cycle"] + 1, float(scf["e_tot"]))
    start = time.perf_counter()
    energy = mf.kernel()
    return {
        "energy_hartree": float(energy),
        "converged": bool(mf.converged),
        "cycles": int(mf.cycles),
        "wall_s": time.perf_counter() - start,
    }


def unconverged(result: dict[str, Any]) -> str | None:
    """What to tell the user when a calculation in the result did not converge, else nothing."""
    runs = {"deorbitalized": result, "parent": result.get("parent", result)}
    names = [
        f"the {name} SCF did not converge in {run['cycles']} cycles"
        for name, run in runs.items()
        if not run["converged"]
    ]
    if not names:
        return None
    return (
        f"{' and '.join(names)}: check the geometry, --charge and --spin, "
        "or converge it from Python with level_shift or newton()."
    )


def table(result: dict[str, Any]) -> Table:
    """Energies, cycles and wall times, and the difference to the parent where there is one."""
    table = Table(title=f"{result['n_atoms']} atoms", title_justify="left")
    table.add_column("functional")
    for column in ("energy / hartree", "cycles", "converged", "wall / s"):
        table.add_column(column, justify="right")
    runs = {f"deorbitalized {result['model']} ({result['potential']})": result}
    if "parent" in result:
        runs[f"parent {result['parent']['model']}"] = result["parent"]
    for name, run in runs.items():
        converged = "yes" if run["converged"] else "NO"
        row = f"{run['energy_hartree']:.6f}", str(run["cycles"]), converged, f"{run['wall_s']:.1f}"
        table.add_row(name, *row)
    if "parent" in result:
        parent = result["parent"]
        difference = result["energy_hartree"] - parent["energy_hartree"]
        per_atom = difference * KCAL_PER_HARTREE / result["n_atoms"]
        share = result["wall_s"] / parent["wall_s"]
        table.caption = (
            f"difference {1000 * difference:+.2f} mHa, {per_atom:+.3f} kcal/mol per atom; "
            f"{share:.2f} of the parent's wall time"
        )
    return table
