"""Densities on which a deorbitalized functional is itself self-consistent, to train its successor.

A surrogate that follows its parent at the parent's densities can still let the density go astray:
what it has never seen may look lower in energy. Where it goes it has orbitals, too, and so the
parent's exchange is known there and can be taught (compare imitation learning on the learner's own
states, Ross, Gordon and Bagnell, AISTATS 2011, arXiv:1011.0686).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from rich.console import Console

from taufree.data import orbitals
from taufree.data.build import Task, calculate_all, locked
from taufree.data.generate import ParentRecord, densities_at, mean_field
from taufree.data.store import (
    Entry,
    entries_of,
    read_manifest,
    read_parent_record,
    write_manifest,
)
from taufree.data.systems import System, registry
from taufree.errors import UserError
from taufree.functional import Functional
from taufree.hosts.pyscf import deorbitalize
from taufree.model.storage import fingerprint, load_model

ENERGY_TOLERANCE = 1e-6  # hartree, of the self-consistent calculation


def relax(
    folder: Path,
    model: str,
    *,
    names: Sequence[str] | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Add to every molecule of the training split the density that ``model`` leads to.

    The calculation starts from the parent's density, on the grid of the coarsest level; where it
    does not converge, its last density is as good to learn from. Records that have one of this
    model are left alone, so an interrupted call goes on where it stopped.

    Returns
    -------
    dict
        ``density_kind``, the name of the new densities, and ``systems``, how many have one.

    Raises
    ------
    UserError
        The folder has no finished training molecules, or is in use.
    """
    folder = folder.absolute()
    functional = load_model(model)
    kind = kind_of(functional)
    with locked(folder):
        entries = read_manifest(folder)
        chosen = [e for e in entries_of(folder, "train") if names is None or e.name in names]
        molecules = [e for e in chosen if not registry()[e.name].period]
        if not molecules:
            raise UserError(f"{folder} holds no such molecules; run `taufree data build` first")
        tasks = list(_missing(folder, molecules, kind))
        make = partial(_with_relaxed, folder, functional, kind)
        for entry in calculate_all(folder, tasks, make, scheduler, workers, console):
            if entry.status == "done":  # else the record stays as it was
                entries[entry.name] = entry
                write_manifest(folder, entries)
    return {"folder": folder, "density_kind": kind, "systems": len(molecules)}


def kind_of(functional: Functional) -> str:
    """Name of the densities that a functional leads to."""
    return f"relaxed-{fingerprint(functional)[:8]}"


def _missing(folder: Path, entries: Sequence[Entry], kind: str) -> Iterator[Task]:
    for entry in entries:
        with h5py.File(folder / entry.file) as file:
            levels = {int(g.attrs["grid_level"]) for g in file.values() if "grid_level" in g.attrs}
            if kind not in file["orbitals"]:
                yield registry()[entry.name], tuple(sorted(levels)), entry.digest


def _with_relaxed(
    folder: Path, functional: Functional, kind: str, system: System, levels: tuple[int, ...]
) -> ParentRecord:
    record = read_parent_record(folder, system)
    start = record.orbitals["converged"]
    mf = deorbitalize(mean_field(system), functional)
    mf.grids.level = levels[0]
    mf.conv_tol = ENERGY_TOLERANCE
    mf.kernel(start @ np.swapaxes(start, -1, -2))
    record.orbitals[kind] = orbitals.factor(np.asarray(mf.make_rdm1()))
    grid = record.densities["converged", levels[0]]
    record.densities[kind, levels[0]] = densities_at(
        mf.mol, grid["coords"], grid["weights"], record.orbitals[kind], system.parent
    )
    return record
