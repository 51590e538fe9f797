"""Self-consistent results beside the parent's: convergence, energies, dipoles, wall times."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from taufree.comparators.self_consistent import Rival, load
from taufree.console import number
from taufree.data.splits import Split, systems_of
from taufree.data.systems import System
from taufree.errors import UserError
from taufree.evaluation.self_consistent import (
    WHICH,
    Run,
    Task,
    Which,
    converge_all,
    has_energy,
)
from taufree.evaluation.thermochemistry import atom, atomization, atoms_of
from taufree.functional import Functional
from taufree.hosts.single_point import KCAL_PER_HARTREE

DISTINCT = ("g2", "atoms", "ions", "diatomics", "molecules", "dimers")
"""Kinds of the test split that are compared; the others that it holds vary one of these."""


def evaluate(
    model: str | Path | Functional | Rival,
    split: Split = "test",
    *,
    kinds: Collection[str] = DISTINCT,
    potential: str = "ks",
    out: Path | None = None,
    systems: Sequence[System] | None = None,
    level: int = 3,
    scheduler: str | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Converge a model and its parent for every system, with the same settings, on Dask workers.

    Density-fitted RKS or, with unpaired electrons, UKS with PySCF's defaults: no level shift, no
    second try. Crystals as `taufree.data.periodic` has them. The free atoms that atomization
    energies need are calculated once. What does not converge is reported as such; differences are
    taken where both converged.

    Parameters
    ----------
    model : str, Path, Functional or Rival
        Name of a bundled model, a path, or a loaded functional; or another deorbitalizer: an
        analytic recipe's name, or a comparator's file.
    split : "train", "validation" or "test"
        Its systems of these ``kinds`` are calculated ...
    kinds : collection of str, optional
        By default the distinct molecules and atoms: no stretched ones, no fields, no crystals.
    systems : sequence of System, optional
        ... unless these are named. Whatever their ``parent``, the model's own is what it is
        compared with.
    potential : "ks" or "gks"
        See `taufree.deorbitalize`.
    out : Path, optional
        Folder that keeps every finished calculation: an interrupted evaluation goes on there, and
        another model's evaluation takes over the parent's results.
    level : int
        PySCF grid level.
    scheduler, workers : optional
        Address of a Dask scheduler, or number of local processes (default: one a core).
    console : Console, optional
        Where progress is shown.

    Returns
    -------
    dict
        ``systems``: a list with ``name``, ``formula``, ``kind``, ``basis``; ``deorbitalized`` and
        ``parent``, each with ``converged`` with default settings, ``rescued`` (a free atom, by
        other means), ``cycles``, ``energy_hartree``, ``dipole_debye`` (3), ``gap_ev`` (orbital
        energies), ``energies_hartree`` (of every cycle), ``wall_s``, or ``error`` in place of the
        numbers; and the differences to the parent ``de_total_mha``,
        ``d_gap_ev``, ``d_dipole_debye`` (length of the difference vector) and
        ``atomization_kcal``, null where there is none. ``atoms``: the same of the free atoms.
        ``summary``: see `summary`.

    Raises
    ------
    UserError
        Nothing to calculate, a potential that there is not, or no scheduler answers.
    """
    functional = load(model)
    if isinstance(functional, Rival) and potential != "ks":
        raise UserError(f"{functional.name} runs with potential='ks' alone.")
    found = [s for s in systems_of(split) if s.kind in kinds] if systems is None else systems
    if not found:
        raise UserError("no system to calculate: name some, or choose other kinds or a split")
    chosen = [replace(system, parent=functional.parent.xc) for system in found]
    atoms = {a for s in chosen for a in _free_atoms(s)}
    runs = converge_all(
        {*chosen, *atoms},
        functional,
        level,
        potential=potential,
        out=out,
        scheduler=scheduler,
        workers=workers,
        console=console,
    )
    lines = [_line(system, runs) for system in chosen]
    return {
        "model": functional.name,
        "comparator": isinstance(functional, Rival),
        "potential": potential,
        "parent": functional.parent.xc,
        "split": split if systems is None else None,
        "grid_level": level,
        "density_fit": True,
        "summary": summary(lines),
        "systems": lines,
        "atoms": [_line(system, runs) for system in sorted(atoms, key=lambda s: s.numbers)],
    }


def _free_atoms(system: System) -> Iterator[System]:
    for symbol in atoms_of(system):
        yield replace(atom(symbol), basis=system.basis, parent=system.parent)


def _line(system: System, runs: Mapping[Task, Run]) -> dict[str, Any]:
    """Both results of a system and their differences."""
    deorbitalized, parent = (runs[system, which] for which in WHICH)
    error = _energy_error(system, runs)
    line: dict[str, Any] = {
        "name": system.name,
        "formula": system.formula,
        "kind": system.kind,
        "basis": system.basis,
        "deorbitalized": deorbitalized,
        "parent": parent,
        "de_total_mha": None,
        "d_gap_ev": None,
        "d_dipole_debye": None,
        "atomization_kcal": None,
    }
    if error is None:
        return line
    line["de_total_mha"] = 1000 * error
    gap, parent_gap = deorbitalized.get("gap_ev"), parent.get("gap_ev")
    if gap is not None and parent_gap is not None:  # kept runs of older versions have none
        line["d_gap_ev"] = gap - parent_gap
    if not system.period:
        moments = np.array([deorbitalized["dipole_debye"], parent["dipole_debye"]])
        line["d_dipole_debye"] = float(np.linalg.norm(moments[0] - moments[1]))
    free = {a.symbols[0]: _energy_error(a, runs) for a in _free_atoms(system)}
    known = {symbol: value for symbol, value in free.items() if value is not None}
    if known and len(known) == len(free):
        line["atomization_kcal"] = KCAL_PER_HARTREE * atomization(error, atoms_of(system), known)
    return line


def _energy_error(system: System, runs: Mapping[Task, Run]) -> float | None:
    deorbitalized, parent = (runs[system, which] for which in WHICH)
    if not (has_energy(deorbitalized) and has_energy(parent)):
        return None
    return float(deorbitalized["energy_hartree"] - parent["energy_hartree"])


def summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Convergence, median cycles, and mean and largest absolute differences to the parent.

    ``converged`` and ``parent_converged`` are shares of all systems, ``compared`` counts those
    where both converged. ``wall_ratio`` is the median ratio of the deorbitalized functional's wall
    time to the parent's; both share the machine with the other systems.
    """
    compared = [line for line in lines if line["de_total_mha"] is not None]
    found: dict[str, Any] = {
        "n_systems": len(lines),
        "compared": len(compared),
        "converged": _share(lines, "deorbitalized"),
        "parent_converged": _share(lines, "parent"),
        "not_converged": [s["name"] for s in lines if not s["deorbitalized"]["converged"]],
        "median_cycles": _median_cycles(lines, "deorbitalized"),
        "parent_median_cycles": _median_cycles(lines, "parent"),
    }
    for key in ("de_total_mha", "d_gap_ev", "d_dipole_debye", "atomization_kcal"):
        values = [abs(line[key]) for line in compared if line[key] is not None]
        found[f"mean_{key}"] = float(np.mean(values)) if values else None
        found[f"max_{key}"] = max(values, default=None)
    ratios = [line["deorbitalized"]["wall_s"] / line["parent"]["wall_s"] for line in compared]
    found["wall_ratio"] = float(np.median(ratios)) if ratios else None
    return found


def _share(lines: Sequence[dict[str, Any]], which: Which) -> float:
    return sum(line[which]["converged"] for line in lines) / len(lines)


def _median_cycles(lines: Sequence[dict[str, Any]], which: Which) -> float | None:
    cycles = [line[which]["cycles"] for line in lines if "cycles" in line[which]]
    return float(np.median(cycles)) if cycles else None


def table(result: dict[str, Any]) -> Table:
    """One row a system, then mean and largest differences, and convergence in the caption."""
    table = Table(
        title=f"{result['potential']} potential beside {result['parent']}, "
        f"grid level {result['grid_level']}",
        title_justify="left",
    )
    table.add_column("system")
    for column in (
        "converged", "cycles", "parent's", "ΔE_total\nmHa", "ΔE_at\nkcal/mol", "Δgap\neV",
        "Δμ\ndebye", "wall\ns", "parent's\ns",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for line in result["systems"]:
        runs = [line[which] for which in WHICH]
        converged = [
            name
            for name, run in zip(("NO", "parent NO"), runs, strict=True)
            if not run["converged"]
        ]
        table.add_row(
            escape(line["name"]),
            ", ".join(converged) or "yes",
            *(str(run.get("cycles", "–")) for run in runs),
            *_cells(line, "{}", "+"),
            *(number(run.get("wall_s"), ".1f") for run in runs),
        )
    table.add_section()
    found = result["summary"]
    median = [number(found[key], "g") for key in ("median_cycles", "parent_median_cycles")]
    table.add_row("mean |Δ|, median cycles", "", *median, *_cells(found, "mean_{}"), "", "")
    table.add_row("largest |Δ|", "", "", "", *_cells(found, "max_{}"), "", "")
    n = found["n_systems"]
    table.caption = (
        f"converged: {round(found['converged'] * n)} of {n}, "
        f"parent {round(found['parent_converged'] * n)} of {n}; differences where both are; "
        f"{number(found['wall_ratio'], '.2f')} of the parent's wall time (median)"
    )
    return table


def _cells(numbers: Mapping[str, Any], key: str, sign: str = "") -> list[str]:
    columns = {
        "de_total_mha": ".2f",
        "atomization_kcal": ".2f",
        "d_gap_ev": ".3f",
        "d_dipole_debye": ".3f",
    }
    signs = {"d_dipole_debye": ""}
    return [
        number(numbers[key.format(name)], signs.get(name, sign) + form)
        for name, form in columns.items()
    ]
