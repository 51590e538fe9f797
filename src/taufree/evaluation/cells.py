"""Relaxed cells beside the minimum of the equation of state: whether stress and energy agree."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import bulk
from ase.eos import EquationOfState
from rich.console import Console
from rich.progress import track
from rich.table import Table

from taufree.ase import TauFree
from taufree.functional import Functional
from taufree.hosts import dynamics
from taufree.model.storage import load_model

CRYSTALS = {
    "Si": ("diamond", 5.43, "gth-dzvp-molopt-sr"),
    "MgO": ("rocksalt", 4.21, "gth-dzvp-molopt-sr"),
}
"""Structure, lattice constant to start from (Å), basis."""
STRAINS = (-0.02, -0.01, 0.0, 0.01, 0.02)
"""Of the cell vectors, around the relaxed cell."""


def evaluate(
    model: str | Functional,
    *,
    kpts: tuple[int, int, int] = (2, 2, 2),
    console: Console | None = None,
) -> dict[str, Any]:
    """Relax Si and MgO with their stress, and fit energies of strained cells around the minimum.

    The primitive cell with a GTH pseudopotential on a uniform grid; Birch-Murnaghan's equation of
    state through five volumes. The number of plane waves of the grid changes with the cell, as in
    any calculation of one: what is compared is what users see.

    Returns
    -------
    dict
        ``crystals``: by name, ``relaxed_angstrom`` and ``eos_angstrom``, the cubic lattice
        constants, their ``difference_angstrom``, and ``bulk_modulus_gpa``.
    """
    functional = load_model(model) if isinstance(model, str) else model
    found = {
        name: _crystal(name, functional, kpts)
        for name in track(CRYSTALS, "crystals", console=console, disable=console is None)
    }
    return {"model": functional.name, "kpts": list(kpts), "crystals": found}


def _crystal(name: str, functional: Functional, kpts: tuple[int, int, int]) -> dict[str, Any]:
    structure, a, basis = CRYSTALS[name]
    atoms = bulk(name, structure, a=a)
    calculator = TauFree(model=functional, basis=basis, kpts=kpts)
    atoms.calc = calculator
    with tempfile.TemporaryDirectory() as folder:
        run = dynamics.relax(atoms, Path(folder) / "cell.traj", cell=True, fmax=0.005)
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
        "bulk_modulus_gpa": float(modulus * 160.21766),
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
        table.add_row(
            name,
            f"{line['relaxed_angstrom']:.4f}",
            f"{line['eos_angstrom']:.4f}",
            f"{line['difference_angstrom']:+.4f}",
            f"{line['bulk_modulus_gpa']:.1f}",
        )
    return table
