"""Relaxed molecules and their frequencies beside the parent's, each with its own forces."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list
from ase.units import Bohr
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from taufree.ase import TauFree
from taufree.console import number
from taufree.data.splits import Split, systems_of
from taufree.data.systems import System
from taufree.errors import UserError
from taufree.evaluation.self_consistent import WHICH, Which
from taufree.evaluation.workers import Run, run_all
from taufree.functional import Functional
from taufree.hosts import dynamics
from taufree.model.storage import fingerprint, load_model

FMAX = 0.003
"""Largest force left (eV/Å): a bond of 5 eV/Å² is then within 0.001 Å of its minimum."""
STEPS = 100
Task = tuple[System, Which, bool]
"""A molecule, the functional that it is relaxed with, and whether its frequencies are wanted."""


def evaluate(
    model: str | Path | Functional,
    split: Split = "test",
    *,
    out: Path | None = None,
    names: Sequence[str] | None = None,
    limit: int | None = None,
    frequencies: int = 10,
    basis: str = "def2-svp",
    level: int = 3,
    scheduler: str | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Relax the G2 molecules of a split with a model and with its parent, on Dask workers.

    Both start from the tabulated geometry, density-fitted, with analytic forces that include the
    motion of the grid. Bonds and angles are those of the tabulated structure; differences are taken
    where both converged. Frequencies are harmonic, each at the minimum of its own functional.

    Parameters
    ----------
    model : str, Path or Functional
        Name of a bundled model, a path, or a loaded functional.
    split : "train", "validation" or "test"
    out : Path, optional
        Folder that keeps every finished calculation: an interrupted evaluation goes on there, and
        another model's evaluation takes over the parent's results.
    names : sequence of str, optional
        Only these molecules of the split.
    limit, frequencies : int
        So many of the smallest molecules (default: all), and of these so many with frequencies.
    basis, level
        One basis and PySCF grid level for both functionals.
    scheduler, workers : optional
        Address of a Dask scheduler, or number of local processes (default: one a core).
    console : Console, optional
        Where progress is shown.

    Returns
    -------
    dict
        ``molecules``: a list with ``name``, the two runs (``converged``, ``steps``,
        ``energy_ev``, ``bonds_angstrom``, ``angles_degree``, ``frequencies_cm`` or null) and the
        mean absolute differences ``bond_angstrom``, ``angle_degree``, ``frequency_cm``.
        ``summary``: mean and largest absolute differences over all bonds, angles and modes.

    Raises
    ------
    UserError
        No such molecule, or no scheduler answers.
    """
    functional = load_model(model)
    systems = _chosen(split, names)[:limit]
    tasks = [(s, which, n < frequencies) for n, s in enumerate(systems) for which in WHICH]
    calls = {
        (system, which, modes): (system, functional, which == "parent", basis, level, modes)
        for system, which, modes in reversed(tasks)  # large ones first pack best
    }
    runs: dict[Task, Run] = dict(
        run_all(
            relaxed,
            calls,
            functional,
            what="relaxing",
            files=_files(out, tasks, functional, basis, level),
            scheduler=scheduler,
            workers=workers,
            console=console,
        )
    )
    lines = []
    for n, system in enumerate(systems):
        both: dict[str, Run] = {which: runs[system, which, n < frequencies] for which in WHICH}
        lines.append({"name": system.name, **both, **_differences(both)})
    return {
        "model": functional.name,
        "parent": functional.parent.xc,
        "split": split,
        "basis": basis,
        "grid_level": level,
        "fmax_ev_per_angstrom": FMAX,
        "summary": summary(lines),
        "molecules": lines,
    }


def _chosen(split: Split, names: Sequence[str] | None) -> list[System]:
    found = [s for s in systems_of(split) if s.kind == "g2" and len(s.symbols) > 1]
    if names is not None:
        if unknown := sorted(set(names) - {s.name for s in found}):
            raise UserError(f"{unknown[0]!r} is no G2 molecule of the {split} split.")
        found = [s for s in found if s.name in names]
    return sorted(found, key=lambda s: (len(s.symbols) * s.n_electrons, s.name))


def _files(
    out: Path | None, tasks: Sequence[Task], functional: Functional, basis: str, level: int
) -> dict[Task, Path]:
    """One JSON file for each finished calculation; the parent's in a folder of their own."""
    if out is None:
        return {}
    folders: dict[Which, str] = {
        "parent": f"parent-{functional.parent.xc}",
        "deorbitalized": f"model-{fingerprint(functional)[:12]}",
    }
    files = {}
    for system, which, with_frequencies in tasks:
        settings = repr((system, basis, level, FMAX, with_frequencies))
        key = hashlib.sha256(settings.encode()).hexdigest()[:12]
        files[system, which, with_frequencies] = out / folders[which] / f"{system.name}-{key}.json"
    return files


def relaxed(
    system: System,
    functional: Functional,
    parent: bool,
    basis: str,
    level: int,
    with_frequencies: bool,
) -> Run:
    """One molecule at its minimum, and its frequencies there."""
    start = time.perf_counter()
    atoms = Atoms(system.symbols, np.array(system.positions) * Bohr)
    internal = internals(atoms)
    atoms.calc = TauFree(
        model=functional, parent=parent, basis=basis, grid_level=level,
        charge=system.charge, spin=system.spin, conv_tol=1e-10,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run = dynamics.relax(atoms, Path(folder) / "relax.traj", fmax=FMAX, steps=STEPS)
        modes = None
        if with_frequencies and run["converged"]:
            modes = dynamics.vibrations(atoms, Path(folder) / "vib")["frequencies_cm"]
    return {
        "converged": run["converged"],
        "steps": run["steps"],
        "energy_ev": run["energy_ev"],
        "positions_angstrom": atoms.positions.tolist(),
        "bonds_angstrom": [atoms.get_distance(*pair) for pair in internal[0]],
        "angles_degree": [atoms.get_angle(*triple) for triple in internal[1]],
        "frequencies_cm": modes,
        "wall_s": time.perf_counter() - start,
    }


def internals(atoms: Atoms) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
    """Bonds by covalent radii, and the angles between bonds of one atom."""
    i, j = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.2))
    pairs = sorted((int(a), int(b)) for a, b in zip(i, j, strict=True))
    bonds = [(a, b) for a, b in pairs if a < b]
    angles = [(a, c, b) for c, a in pairs for d, b in pairs if c == d and a < b]
    return bonds, angles


QUANTITIES = {
    "bond_angstrom": "bonds_angstrom",
    "angle_degree": "angles_degree",
    "frequency_cm": "frequencies_cm",
}


def _differences(runs: Mapping[str, Run]) -> dict[str, float | None]:
    """Mean absolute differences of one molecule."""
    found: dict[str, float | None] = {}
    for name, key in QUANTITIES.items():
        values = _both(runs, key)
        found[name] = float(np.abs(values).mean()) if values.size else None
    return found


def _both(runs: Mapping[str, Any], key: str) -> np.ndarray:
    """Differences of one molecule, deorbitalized less parent; none unless both converged."""
    model, parent = (runs[which] for which in WHICH)
    if not (model["converged"] and parent["converged"]):
        return np.zeros(0)
    if model[key] is None or parent[key] is None:
        return np.zeros(0)
    return np.subtract(model[key], parent[key])


def summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and largest absolute differences over all bonds, angles and modes."""
    found: dict[str, Any] = {
        "n_molecules": len(lines),
        "compared": sum(all(line[w]["converged"] for w in WHICH) for line in lines),
        "not_converged": [
            line["name"] for line in lines if not all(line[w]["converged"] for w in WHICH)
        ],
    }
    for name, key in QUANTITIES.items():
        values = np.abs(np.concatenate([np.zeros(0), *(_both(line, key) for line in lines)]))
        found[f"n_{name}"] = len(values)
        found[f"mean_{name}"] = float(values.mean()) if len(values) else None
        found[f"max_{name}"] = float(values.max()) if len(values) else None
    return found


def table(result: dict[str, Any]) -> Table:
    """One row a molecule, then the mean and the largest difference of all."""
    table = Table(
        title=f"{result['model']} beside {result['parent']}, {result['basis']}, grid level "
        f"{result['grid_level']}: mean absolute differences",
        title_justify="left",
    )
    table.add_column("molecule")
    for column in ("steps", "parent's", "bonds\nÅ", "angles\n°", "frequencies\ncm⁻¹"):
        table.add_column(column, justify="right")
    for line in result["molecules"]:
        steps = [
            str(line[w]["steps"]) if line[w]["converged"] else line[w].get("error", "NO")
            for w in WHICH
        ]
        table.add_row(escape(line["name"]), *map(escape, steps), *_cells(line, ""))
    table.add_section()
    for what, prefix in (("mean", "mean_"), ("largest", "max_")):
        table.add_row(what, "", "", *_cells(result["summary"], prefix))
    found = result["summary"]
    table.caption = f"both relaxed: {found['compared']} of {found['n_molecules']}"
    return table


def _cells(numbers: Mapping[str, Any], prefix: str) -> list[str]:
    forms = {"bond_angstrom": ".4f", "angle_degree": ".2f", "frequency_cm": ".1f"}
    values = {name: numbers[prefix + name] for name in forms}
    return [number(v, forms[name]) for name, v in values.items()]
