"""Relaxed cells beside the minimum of the equation of state: whether stress and energy agree."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import bulk
from ase.eos import EquationOfState
from ase.io import read
from ase.units import GPa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from taufree.ase import TauFree
from taufree.errors import UserError
from taufree.evaluation.workers import Run, run_all
from taufree.functional import Functional
from taufree.hosts import dynamics
from taufree.hosts.structures import is_gth
from taufree.model.storage import fingerprint, load_model

CRYSTALS = {
    "Si": ("diamond", 5.43, "gth-dzvp-molopt-sr"),
    "MgO": ("rocksalt", 4.21, "def2-svp"),
}
"""Structure, lattice constant to start from (Å), basis. GTH bases of Mg have its core's 2s and 2p,
which uniform grids hardly resolve."""
LEVEL = 3
"""PySCF's grid level. With grid response stress and energy agree on any grid, but on a coarse one
the energy itself has ripples around the fit, which move its minimum."""
STRAINS = (-0.02, -0.01, 0.0, 0.01, 0.02)
"""Of the cell vectors, around the relaxed cell."""
FMAX = 0.01
"""Largest ∂E/∂ε left (eV a cell): with bulk moduli of 100 to 160 GPa within 0.001 Å of the
minimum."""


def evaluate(
    model: str | Path | Functional,
    *,
    out: Path | None = None,
    names: Sequence[str] | None = None,
    kpts: tuple[int, int, int] = (2, 2, 2),
    scheduler: str | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Relax Si and MgO with their stress, and fit energies of strained cells around the minimum.

    The primitive cell on a Becke grid; Birch-Murnaghan's equation of state through five volumes.
    Si has GTH pseudopotentials and analytic stress; MgO all electrons, stress by differences of
    energies, and atoms that symmetry holds in place. The number of plane waves of silicon's Fourier
    grid changes with the cell, as in any calculation of one: what is compared is what users see.

    Parameters
    ----------
    model : str, Path or Functional
        Name of a bundled model, a path, or a loaded functional.
    out : Path, optional
        Folder that keeps finished crystals, and how far the others are: the same call goes on.
    names : sequence of str, optional
        Only these.
    kpts : (int, int, int)
        Mesh of k-points.
    scheduler, workers : optional
        Address of a Dask scheduler, or number of local processes (default: one a core).
    console : Console, optional
        Where progress is shown.

    Returns
    -------
    dict
        ``crystals``: by name ``converged``, ``relaxed_angstrom`` and ``eos_angstrom``, the cubic
        lattice constants, their ``difference_angstrom``, and ``bulk_modulus_gpa``; or ``error``.

    Raises
    ------
    UserError
        No such crystal, or no scheduler answers.
    """
    functional = load_model(model)
    chosen = list(CRYSTALS if names is None else names)
    if unknown := sorted(set(chosen) - CRYSTALS.keys()):
        raise UserError(f"{unknown[0]!r} is none of {', '.join(CRYSTALS)}.")
    folder = None if out is None else out.absolute() / f"model-{fingerprint(functional)[:12]}"
    files = {name: folder / _file(name, kpts) for name in chosen} if folder else {}
    calls = {name: (name, functional, kpts, files.get(name)) for name in reversed(chosen)}
    found = dict(
        run_all(
            _crystal,
            calls,
            functional,
            what="crystals",
            files=files,
            scheduler=scheduler,
            workers=workers,
            console=console,
        )
    )
    crystals = {name: found[name] for name in chosen}
    return {"model": functional.name, "kpts": list(kpts), "crystals": crystals}


def _file(name: str, kpts: tuple[int, int, int]) -> str:
    settings = repr((CRYSTALS[name], kpts, LEVEL, STRAINS, FMAX))
    return f"{name}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}.json"


def _crystal(
    name: str, functional: Functional, kpts: tuple[int, int, int], file: Path | None
) -> Run:
    """One crystal; the relaxation's last step is kept beside ``file``, that of the result."""
    structure, a, basis = CRYSTALS[name]
    atoms: Any = bulk(name, structure, a=a)
    with tempfile.TemporaryDirectory() as scratch:
        trajectory = (file or Path(scratch) / "cell").with_suffix(".traj")
        trajectory.parent.mkdir(parents=True, exist_ok=True)
        with suppress(Exception):  # no trajectory yet, or one broken off in its first step
            atoms = read(trajectory, index=-1)
        calculator = TauFree(model=functional, basis=basis, kpts=kpts, grid_level=LEVEL)
        atoms.calc = calculator
        analytic = is_gth(basis)
        run = dynamics.relax(atoms, trajectory, cell=analytic, cell_only=not analytic, fmax=FMAX)
    volumes, energies = [], []
    for strain in STRAINS:
        there = atoms.copy()
        there.set_cell(atoms.cell * (1 + strain), scale_atoms=True)
        there.calc = calculator
        volumes.append(there.get_volume())
        energies.append(there.get_potential_energy())
    volume, _, modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit()
    relaxed, eos = _lattice_constant(atoms.get_volume()), _lattice_constant(volume)
    return {
        "converged": run["converged"],
        "relaxed_angstrom": relaxed,
        "eos_angstrom": eos,
        "difference_angstrom": relaxed - eos,
        "bulk_modulus_gpa": float(modulus / GPa),
    }


def _lattice_constant(volume: float) -> float:
    """Cubic, of the primitive face-centred cell."""
    return float(np.cbrt(4 * volume))


def table(result: dict[str, Any]) -> Table:
    """One row a crystal."""
    table = Table(title=f"{result['model']}, cubic lattice constants", title_justify="left")
    table.add_column("crystal")
    for column in ("relaxed / Å", "equation of state / Å", "difference / Å", "bulk modulus / GPa"):
        table.add_column(column, justify="right")
    for name, line in result["crystals"].items():
        if "error" in line:
            table.add_row(name, escape(line["error"]))
            continue
        table.add_row(
            name,
            f"{line['relaxed_angstrom']:.4f}",
            f"{line['eos_angstrom']:.4f}",
            f"{line['difference_angstrom']:+.4f}",
            f"{line['bulk_modulus_gpa']:.1f}",
        )
    return table
