"""One structure file, one self-consistent energy: deorbitalized, and beside it the parent's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ase import Atoms
from ase.units import Hartree, kcal, mol
from pyscf import dft
from pyscf.pbc import dft as pbc_dft
from rich.table import Table

import taufree
from taufree.errors import UnsupportedError, UserError
from taufree.hosts.pyscf import coulomb_fitting_basis
from taufree.hosts.structures import (
    CRYSTAL_BASIS,
    MOLECULAR_BASIS,
    charge_and_spin,
    crystal,
    is_gth,
    molecule,
    read_structure,
)

KCAL_PER_HARTREE = Hartree / (kcal / mol)

OnCycle = Callable[[str, int, float], None]
"""Progress: called after each SCF cycle with "deorbitalized" or "parent", cycle, energy."""


@dataclass(frozen=True)
class Settings:
    """How a single point is done; ``max_memory`` in MB.

    ``spin`` is 2S = N↑ − N↓, of one cell if there is one; it and ``charge`` are by default the sums
    of the initial moments and charges of the atoms. Without a ``basis``, molecules have
    def2-tzvp and crystals gth-dzvp-molopt-sr with its pseudopotentials. ``kpts`` is the k-point
    mesh of a crystal, through Γ, and ``smearing_ev`` the width (eV) of the Fermi function that
    fills its bands, for metals. ``grid_level`` is PySCF's; unless
    given, 3 for molecules and 1 for crystals.
    """

    basis: str | None = None
    charge: int | None = None
    spin: int | None = None
    model: str = "ms2"
    potential: Literal["ks", "gks"] = "ks"
    grid_level: int | None = None
    density_fit: bool = True
    max_memory: int | None = None
    kpts: tuple[int, int, int] | None = None
    smearing_ev: float = 0.0


def single_point(
    path: Path, settings: Settings, *, parent: bool = False, on_cycle: OnCycle | None = None
) -> dict[str, Any]:
    """Converge the deorbitalized functional on a structure file and, if asked to, its parent.

    Parameters
    ----------
    path : Path
        Any structure that ASE reads; of several frames the last.
    settings : Settings
        Basis, charge, spin, model, grid, k-points.
    parent : bool
        Converge the orbital-dependent parent too, with the same settings.
    on_cycle : callable, optional
        Progress, see ``OnCycle``.

    Returns
    -------
    dict
        ``energy_hartree``, ``converged``, ``cycles``, ``model``, ``potential``, ``n_atoms`` and
        ``wall_s`` (the whole SCF: grids, integrals, cycles); ``parent`` holds the same keys. With
        smearing, ``free_energy_hartree`` is E − TS beside the energy E.

    Raises
    ------
    UserError
        The file, basis, charge, spin, k-points or model cannot be used.
    UnsupportedError
        A charged crystal, or one periodic in fewer than three directions.
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


def mean_field(atoms: Atoms, settings: Settings) -> Any:
    """Restricted or, with unpaired electrons, unrestricted Kohn-Sham object of PySCF.

    Exchange and correlation are integrated on Becke grids. The Coulomb interaction is that of
    fitted densities, of a crystal in a GTH basis that of its density on a uniform grid, by Fourier
    transform.

    Raises
    ------
    UserError, UnsupportedError
        See :func:`single_point`.
    """
    charge, spin = charge_and_spin(atoms, settings.charge, settings.spin)
    make = _crystal if atoms.pbc.any() else _molecule
    return make(atoms, replace(settings, charge=charge, spin=spin))


def _molecule(atoms: Atoms, settings: Settings) -> dft.rks.RKS:
    if settings.kpts or settings.smearing_ev:
        raise UserError(
            "--kpts and --smearing are for crystals, and this structure has no cell: leave them "
            "out, or write the file with its cell (cif, POSCAR, extxyz with Lattice)."
        )
    basis = MOLECULAR_BASIS if settings.basis is None else settings.basis
    if is_gth(basis):
        raise UserError(
            f"basis {basis!r} is for crystals: choose one for all electrons such as def2-tzvp."
        )
    system = molecule(atoms, basis, settings.charge or 0, settings.spin or 0)
    if settings.max_memory is not None:
        system.max_memory = settings.max_memory
    mf = (dft.UKS if settings.spin else dft.RKS)(system)
    if settings.density_fit:
        mf = mf.density_fit(auxbasis=coulomb_fitting_basis(system))
    mf.grids.level = 3 if settings.grid_level is None else settings.grid_level
    return mf


def _crystal(atoms: Atoms, settings: Settings) -> pbc_dft.krks.KRKS:
    if settings.charge:
        raise UnsupportedError("charged crystals are not available: leave out --charge.")
    if settings.kpts is None:
        # as dense as 4 × 4 × 4 for silicon, whose cell vectors are 3.84 Å long
        mesh = [max(1, round(15 / length)) for length in atoms.cell.lengths()]
        raise UserError(
            "a crystal needs a mesh of k-points: add "
            f"--kpts {' '.join(map(str, mesh))}, and see whether a finer one changes the energy."
        )
    basis = CRYSTAL_BASIS if settings.basis is None else settings.basis
    if not (is_gth(basis) or settings.density_fit):
        raise UnsupportedError(
            "all-electron crystals need density fitting: leave out --no-density-fit, or choose a "
            f"GTH basis ({CRYSTAL_BASIS})."
        )
    cell = crystal(atoms, basis, settings.spin or 0, smeared=settings.smearing_ev > 0)
    if settings.max_memory is not None:
        cell.max_memory = settings.max_memory
    kpts = cell.make_kpts(settings.kpts)
    if not settings.spin and cell.nelectron * len(kpts) % 2:
        raise UserError(
            f"{cell.nelectron} electrons at {len(kpts)} k-points leave one unpaired: choose --kpts "
            "with an even number, such as 4 4 4, or --spin."
        )
    mf = (pbc_dft.KUKS if settings.spin else pbc_dft.KRKS)(cell, kpts)
    if settings.spin:  # PySCF counts the electrons of all k-points together
        n_up = (cell.nelectron + settings.spin) // 2
        mf.nelec = len(kpts) * n_up, len(kpts) * (cell.nelectron - n_up)
    if not is_gth(basis):
        mf = mf.rs_density_fit()
    mf.grids = pbc_dft.BeckeGrids(cell)  # a uniform grid does not resolve what tokens see
    mf.grids.level = 1 if settings.grid_level is None else settings.grid_level
    if settings.smearing_ev:
        mf = mf.smearing(sigma=settings.smearing_ev / Hartree, method="fermi")
    return mf


def _converge(mf: Any, name: str, on_cycle: OnCycle | None) -> dict[str, Any]:
    if on_cycle:
        mf.callback = lambda scf: on_cycle(name, scf["cycle"] + 1, float(scf["e_tot"]))
    start = time.perf_counter()
    energy = mf.kernel()
    free_energy = getattr(mf, "e_free", None)
    return {
        "energy_hartree": float(energy),
        **({} if free_energy is None else {"free_energy_hartree": float(free_energy)}),
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
        "add --smearing 0.1 for a metal, or converge it from Python with level_shift or newton()."
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
