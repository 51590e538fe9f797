"""Self-consistent calculations of many systems: several at once, and each kept when finished."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase.units import Hartree
from rich.console import Console

from taufree.comparators.integrator import attach
from taufree.comparators.self_consistent import Rival, identity
from taufree.data.generate import mean_field
from taufree.data.periodic import converge as converge_crystal
from taufree.data.periodic import properties as crystal_properties
from taufree.data.store import digest, file_of
from taufree.data.systems import System
from taufree.evaluation.workers import Run as Run
from taufree.evaluation.workers import run_all
from taufree.functional import Functional
from taufree.hosts import rescue
from taufree.hosts.pyscf import deorbitalize

Which = Literal["deorbitalized", "parent"]
Task = tuple[System, Which]

WHICH: tuple[Which, Which] = ("deorbitalized", "parent")


def converge_all(
    systems: Collection[System],
    functional: Functional | Rival,
    level: int,
    *,
    which: Sequence[Which] = WHICH,
    potential: str = "ks",
    out: Path | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> dict[Task, Run]:
    """Result of `converge` for every system, with the functional and with its parent.

    With a folder ``out``, finished calculations are read from there and written there at once; the
    parent's serve every model and potential, and so do a crystal's density-fitting integrals, which
    take most of its time. What broke off with an error is tried again.
    """
    largest_first = sorted(systems, key=lambda system: system.cost, reverse=True)
    tasks: list[Task] = [(system, each) for system in largest_first for each in which]
    integrals = None if out is None else out.absolute() / "integrals"
    if integrals and any(system.period for system in systems):
        integrals.mkdir(parents=True, exist_ok=True)
    models = {"deorbitalized": functional, "parent": None}
    calls = {
        (system, each): (system, models[each], level, integrals, potential)
        for system, each in tasks
    }
    runs: dict[Task, Run] = {}
    for task, run in run_all(
        converge,
        calls,
        functional,
        what="self-consistent",
        files=_files(out, tasks, functional, level, potential),
        scheduler=scheduler,
        workers=workers,
        console=console,
    ):
        runs[task] = run
        if console is not None and not run["converged"]:
            why = run.get("error") or f"not converged in {run['cycles']} cycles"
            console.print(f"{task[0].name}, {task[1]}: {why}", markup=False)
    return runs


def _files(
    folder: Path | None,
    tasks: Sequence[Task],
    functional: Functional | Rival,
    level: int,
    potential: str,
) -> dict[Task, Path]:
    """One JSON file for each finished calculation; the parent's in a folder of their own."""
    if folder is None:
        return {}
    suffix = "" if potential == "ks" else f"-{potential}"
    folders: dict[Which, Path] = {
        "parent": folder / f"parent-{functional.parent.xc}",
        "deorbitalized": folder / f"model-{identity(functional)}{suffix}",
    }
    return {
        (system, which): folders[which]
        / f"{Path(file_of(system)).stem}-{digest(system, [level])[:12]}.json"
        for system, which in tasks
    }


def converge(
    system: System,
    functional: Functional | Rival | None,
    level: int,
    integrals: Path | None = None,
    potential: str = "ks",
) -> Run:
    """One calculation: the parent, or a functional in place of it.

    A free atom that PySCF's default settings do not converge is converged by other means
    (``rescued``), for the atomization energies of all its molecules depend on it.

    Density-fitting integrals are made beforehand, where PySCF would make a molecule's anew in every
    cycle, and do not count in ``wall_s``; a crystal's are taken from the folder ``integrals``, or
    left there.
    """
    mf = mean_field(system)
    mf.grids.level = level
    if isinstance(functional, Rival):
        mf = attach(mf, functional)
    elif functional is not None:
        mf = deorbitalize(mf, functional, potential)
    _fit_density(mf, system, integrals)
    energies: list[float] = []
    mf.callback = lambda scf: energies.append(float(scf["e_tot"]))
    start = time.perf_counter()
    if system.period:
        converge_crystal(mf, system.period, mf.callback)
    else:
        mf.kernel()
    wall = time.perf_counter() - start
    by_itself, cycles = bool(mf.converged), int(mf.cycles)
    if not by_itself and len(system.symbols) == 1 and not system.period:
        rescue.converge(mf, mf.make_rdm1())
    return {
        "converged": by_itself,
        "rescued": bool(mf.converged) and not by_itself,
        "cycles": cycles,
        **(crystal_properties(mf) if system.period else _molecule_properties(mf)),
        "energies_hartree": energies,
        "wall_s": wall,
    }


def has_energy(run: Run) -> bool:
    """Whether a calculation converged, a free atom's by whatever means."""
    return bool(run["converged"] or run.get("rescued"))


def gap(mf: Any) -> float | None:
    """Lowest empty less highest occupied orbital energy, of either spin; None if one is missing."""
    energies, occupied = np.array(mf.mo_energy), np.array(mf.mo_occ) > 0
    if occupied.all():
        return None
    return float(energies[~occupied].min() - energies[occupied].max()) * Hartree


def _molecule_properties(mf: Any) -> Run:
    dipole = mf.dip_moment(unit="Debye", verbose=0)
    return {
        "energy_hartree": float(mf.e_tot),
        "gap_ev": gap(mf),
        "dipole_debye": [float(x) for x in dipole],
    }


def _fit_density(mf: Any, system: System, folder: Path | None) -> None:
    """Density-fitting integrals; a crystal's in a folder where both functionals find them."""
    if not system.period:
        mf.with_df.build()
        return
    if folder is None:
        mf.with_df.build(j_only=True)
        return
    definition = replace(system, name="", parent="")
    path = folder / f"{Path(file_of(system)).stem}-{digest(definition, [])[:12]}.h5"
    if not path.is_file():
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
            unfinished = Path(scratch) / path.name
            mf.with_df._cderi_to_save = str(unfinished)
            mf.with_df.build(j_only=True)
            unfinished.replace(path)
    mf.with_df._cderi = str(path)
