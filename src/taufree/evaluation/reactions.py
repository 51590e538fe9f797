"""Barrier heights and interaction energies, self-consistent, beside the parent's."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from taufree.comparators.self_consistent import Rival, load
from taufree.console import number
from taufree.data.reactions import SETS, Reaction, reactions
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
from taufree.functional import Functional
from taufree.hosts.single_point import KCAL_PER_HARTREE


def evaluate(
    model: str | Path | Functional | Rival,
    collections: Collection[str] = SETS,
    *,
    out: Path | None = None,
    names: Collection[str] | None = None,
    basis: str = "def2-svp",
    level: int = 3,
    max_electrons: int | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Energies of every reaction with a model and with its parent, and their differences.

    Both in one basis and on one grid, density-fitted, with PySCF's defaults. Interaction energies
    have no counterpoise correction: the superposition error is the same on both sides to the
    accuracy looked at here, but the energies themselves are not those of a complete basis.

    Parameters
    ----------
    model : str, Path, Functional or Rival
        Name of a bundled model, a path, or a loaded functional; or another deorbitalizer: an
        analytic recipe's name, or a comparator's file.
    collections : "dbh24", "s22", or both
    out : Path, optional
        Folder that keeps every finished calculation, see `taufree.evaluation.self_consistent`.
    names : optional
        Only these reactions.
    max_electrons : optional
        Only reactions of systems up to this size; those left out are named.

    Returns
    -------
    dict
        ``reactions``: a list with ``name``, ``set``, ``energy_kcal``, ``parent_kcal`` and
        ``error_kcal`` (null where a calculation did not converge), ``reference_kcal`` as published.
        ``summary``: by set, ``n``, ``compared``, mean and largest ``error_kcal``; how many of its
        ``n_systems`` ``converged`` with both functionals, and the ``median_cycles`` of each.
        ``systems``: how each calculation went. ``left_out``: names.

    Raises
    ------
    UserError
        An unknown set, basis or name, or no scheduler answers.
    """
    functional = load(model)
    if unknown := sorted(set(collections) - {*SETS}):
        raise UserError(f"unknown set {unknown[0]!r}: choose from {', '.join(SETS)}.")
    known = [r for c in collections for r in reactions(c, basis, functional.parent.xc)]
    if names and (unknown := sorted(set(names) - {r.name for r in known})):
        raise UserError(f"unknown reaction {unknown[0]!r}: one is called {known[0].name!r}.")
    wanted = [r for r in known if not names or r.name in names]
    chosen = [r for r in wanted if max_electrons is None or r.n_electrons <= max_electrons]
    if not chosen:
        raise UserError(f"no reaction has at most {max_electrons} electrons.")
    systems = {system: None for r in chosen for _, system in r.terms}  # in order, each once
    runs = converge_all(
        list(systems),
        functional,
        level,
        out=out,
        scheduler=scheduler,
        workers=workers,
        console=console,
    )
    lines = [_line(reaction, runs) for reaction in chosen]
    return {
        "model": functional.name,
        "comparator": isinstance(functional, Rival),
        "potential": "ks",
        "parent": functional.parent.xc,
        "basis": basis,
        "grid_level": level,
        "density_fit": True,
        "counterpoise": False,
        "summary": {
            c: _summary([x for x in lines if x["set"] == c])
            | _convergence({s for r in chosen if r.collection == c for _, s in r.terms}, runs)
            for c in collections
        },
        "reactions": lines,
        "systems": [
            {"name": s.name, "formula": s.formula, **{w: runs[s, w] for w in WHICH}}
            for s in systems
        ],
        "left_out": [r.name for r in wanted if r not in chosen],
    }


def _line(reaction: Reaction, runs: Mapping[Task, Run]) -> dict[str, Any]:
    energy, parent = (_energy(reaction, runs, which) for which in WHICH)
    error = None if energy is None or parent is None else energy - parent
    return {
        "name": reaction.name,
        "set": reaction.collection,
        "energy_kcal": energy,
        "parent_kcal": parent,
        "error_kcal": error,
        "reference_kcal": reaction.reference_kcal,
    }


def _energy(reaction: Reaction, runs: Mapping[Task, Run], which: Which) -> float | None:
    """Of systems that all converged, kcal/mol."""
    terms = [(c, runs[system, which]) for c, system in reaction.terms]
    if not all(has_energy(run) for _, run in terms):
        return None
    return KCAL_PER_HARTREE * float(sum(c * run["energy_hartree"] for c, run in terms))


def _summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    errors = [abs(line["error_kcal"]) for line in lines if line["error_kcal"] is not None]
    return {
        "n": len(lines),
        "compared": len(errors),
        "mean_error_kcal": float(np.mean(errors)) if errors else None,
        "max_error_kcal": max(errors, default=None),
    }


def _convergence(systems: Collection[System], runs: Mapping[Task, Run]) -> dict[str, Any]:
    both = [[runs[system, which] for which in WHICH] for system in systems]
    done = [pair for pair in both if all(run["converged"] for run in pair)]
    cycles = np.array([[run["cycles"] for run in pair] for pair in done]).reshape(-1, len(WHICH))
    medians = np.median(cycles, axis=0).tolist() if done else [None, None]
    of = dict(zip(WHICH, medians, strict=True))
    return {
        "n_systems": len(both),
        "converged": len(done),
        "median_cycles": of["deorbitalized"],
        "parent_median_cycles": of["parent"],
    }


def table(result: dict[str, Any]) -> Table:
    """One row a reaction, then the means of the sets."""
    table = Table(
        title=f"{result['model']} beside {result['parent']}, {result['basis']}, grid level "
        f"{result['grid_level']}, no counterpoise; kcal/mol",
        title_justify="left",
    )
    table.add_column("reaction")
    for column in ("model", "parent", "difference", "published"):
        table.add_column(column, justify="right")
    for line in result["reactions"]:
        numbers = (line[key] for key in ("energy_kcal", "parent_kcal", "error_kcal"))
        cells = (number(x, "+.2f") for x in (*numbers, line["reference_kcal"]))
        table.add_row(escape(line["name"]), *cells)
    table.add_section()
    for name, found in result["summary"].items():
        if found["compared"]:
            mean, largest = (f"{found[f'{k}_error_kcal']:.2f}" for k in ("mean", "max"))
            label = f"{name}: mean, largest of {found['compared']}"
            table.add_row(label, "", "", f"{mean}, {largest}", "")
    for name, found in result["summary"].items():
        if found["compared"]:
            ours, parents = found["median_cycles"], found["parent_median_cycles"]
            converged = f"{found['converged']} of {found['n_systems']}"
            table.add_row(
                f"{name}: converged, median cycles", f"{ours:g}", f"{parents:g}", "", converged
            )
    if left := result["left_out"]:
        table.caption = f"left out as too large: {len(left)} ({escape(', '.join(left))})"
    return table
