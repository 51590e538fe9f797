"""Self-consistent calculations of many systems: several at once, and each kept when finished."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ase.units import Hartree
from pyscf import lib
from rich.console import Console

from taufree.data.generate import mean_field
from taufree.data.periodic import converge as converge_crystal
from taufree.data.periodic import properties as crystal_properties
from taufree.data.store import digest, file_of
from taufree.data.systems import System
from taufree.evaluation.workers import Run as Run
from taufree.evaluation.workers import failed, run_all
from taufree.files import write_atomic
from taufree.functional import Functional
from taufree.hosts import rescue
from taufree.hosts.pyscf import deorbitalize
from taufree.model.storage import fingerprint

Which = Literal["deorbitalized", "parent"]
Task = tuple[System, Which]

WHICH: tuple[Which, Which] = ("deorbitalized", "parent")


def converge_all(
    systems: Collection[System],
    functional: Functional,
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
    store = _Store(out, functional, level, potential)
    tasks: list[Task] = [
        (system, each) for system in sorted(systems, key=_cost, reverse=True) for each in which
    ]
    runs = {task: kept for task in tasks if (kept := store.get(task)) is not None}
    missing = [task for task in tasks if task not in runs]
    integrals = None if out is None else out.absolute() / "integrals"
    if integrals and any(system.period for system in systems):
        integrals.mkdir(exist_ok=True)
    options = level, integrals, potential
    for task, run in _calculate(missing, functional, options, scheduler, workers, console):
        runs[task] = run
        if "error" not in run:
            store.put(task, run)
    return runs


def _cost(system: System) -> int:
    return system.n_electrons * len(system.symbols) * (2 if system.polarized else 1)


class _Store:
    """Finished calculations, one JSON file each; the parent's in a folder of their own."""

    def __init__(
        self, folder: Path | None, functional: Functional, level: int, potential: str
    ) -> None:
        self.level = level
        self.folders: dict[Which, Path] = {}
        if folder is not None:
            self.folders["parent"] = folder / f"parent-{functional.parent.xc}"
            suffix = "" if potential == "ks" else f"-{potential}"
            model = f"model-{fingerprint(functional)[:12]}{suffix}"
            self.folders["deorbitalized"] = folder / model
        for path in self.folders.values():
            path.mkdir(parents=True, exist_ok=True)

    def _path(self, task: Task) -> Path | None:
        system, which = task
        if not self.folders:
            return None
        key = digest(system, [self.level])[:12]
        return self.folders[which] / f"{Path(file_of(system)).stem}-{key}.json"

    def get(self, task: Task) -> Run | None:
        path = self._path(task)
        if path is not None and path.is_file():
            with suppress(ValueError):  # damaged: calculate it again
                return json.loads(path.read_text("utf-8"))
        return None

    def put(self, task: Task, run: Run) -> None:
        path = self._path(task)
        if path is not None:
            write_atomic(path, json.dumps(run, indent=1).encode())


def _calculate(
    tasks: Sequence[Task],
    functional: Functional,
    options: tuple[int, Path | None, str],
    scheduler: str | None,
    workers: int | None,
    console: Console | None,
) -> Iterator[tuple[Task, Run]]:
    """Yield the tasks' results as they finish."""
    calls = {
        (system, which): (system, functional if which == "deorbitalized" else None, *options)
        for system, which in tasks
    }
    for task, run in run_all(
        converge,
        calls,
        functional,
        what="self-consistent",
        scheduler=scheduler,
        workers=workers,
        console=console,
    ):
        if console is not None and not run["converged"]:
            why = run.get("error") or f"not converged in {run['cycles']} cycles"
            console.print(f"{task[0].name}, {task[1]}: {why}", markup=False)
        yield task, run


def converge(
    system: System,
    functional: Functional | None,
    level: int,
    integrals: Path | None = None,
    potential: str = "ks",
) -> Run:
    """One calculation, on one thread: the parent, or a functional in place of it.

    A free atom that PySCF's default settings do not converge is converged by other means
    (``rescued``), for the atomization energies of all its molecules depend on it.

    A crystal's density-fitting integrals are taken from the folder ``integrals``, or left there,
    and do not count in ``wall_s``.
    """
    lib.num_threads(1)  # parallel over systems
    torch.set_num_threads(1)
    try:
        mf = mean_field(system)
        if not (system.period and system.period.pseudo):
            mf.grids.level = level
        if functional is not None:
            mf = deorbitalize(mf, functional, potential)
        if system.period and system.period.pseudo is None:
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
    except Exception as error:  # one system's trouble is not the others'
        return failed(error)


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
    """Density-fitting integrals, kept in a folder where both functionals of a system find them."""
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
