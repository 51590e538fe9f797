"""Time and memory of one XC build against the number of atoms, each size in a fresh process."""

from __future__ import annotations

import copy
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from rich.table import Table

import taufree
from taufree.console import kept, write_json
from taufree.errors import UserError
from taufree.evaluation.speed import measure, systems
from taufree.evaluation.speed.measure import DEORBITALIZED, GGA, Say
from taufree.functional import Functional
from taufree.model.storage import fingerprint

NETWORK, OWN = "network", "own"
MARKERS = {"alkane": "o", "water": "s"}


@dataclass(frozen=True)
class Setup:
    """What is the same for all sizes; ``max_memory`` in MB.

    Up to ``reference_atoms`` the fast form's energy is compared with the reference form's; up to
    ``parent_atoms`` PBE and the parent run too, which take minutes a build for more.
    """

    model: str
    basis: str
    grid_level: int
    repeats: int
    max_memory: int | None
    reference_atoms: int
    parent_atoms: int


def bench_scaling(
    setup: Setup, *, families: list[str], sizes: list[int], say: Say, keep: Path | None = None
) -> dict[str, Any]:
    """Measure every family at every size, and fit t ∝ (atoms)^k.

    The density is PySCF's first guess, so that no SCF is needed. What is finished stands in the
    file ``keep``, and is taken from there if it was measured with the same settings.

    Raises
    ------
    UserError
        A family that there is not.
    """
    if unknown := set(families) - set(systems.FAMILIES):
        raise UserError(f"--family {unknown.pop()}: choose of {', '.join(systems.FAMILIES)}.")
    functional = taufree.load_model(setup.model)
    settings = {**asdict(setup), "fingerprint": fingerprint(functional)}
    asked = [(family, n) for family in families for n in sorted(sizes)]
    done = [r for r in kept(keep, settings) if (r["family"], r["asked"]) in asked]
    result: dict[str, Any] = {
        "benchmark": "scaling",
        "conditions": measure.conditions(functional),
        "parent": functional.parent.xc,
        "settings": settings,
        "results": done,
        "exponents": {},
        "failures": [],
    }
    for family, n_atoms in asked:
        if any((r["family"], r["asked"]) == (family, n_atoms) for r in result["results"]):
            continue
        say(f"{family}, {n_atoms} atoms, {setup.basis}")
        try:
            # a process of its own: memory that smaller molecules left behind is not counted
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, spawn, _end_with_parent) as pool:
                found = pool.submit(measure_size, setup, family, n_atoms).result()
        except BrokenProcessPool:
            result["failures"].append(f"{family} {n_atoms}")
            continue
        result["results"].append({"asked": n_atoms, **found})
        if keep:
            write_json(keep, result)
    result["results"].sort(key=lambda r: asked.index((r["family"], r["asked"])))
    for family in families:
        result["exponents"][family] = exponents(
            [r for r in result["results"] if r["family"] == family]
        )
    return result


def _end_with_parent() -> None:
    """A benchmark that is killed takes the process that measures along."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def measure_size(setup: Setup, family: str, n_atoms: int) -> dict[str, Any]:
    """Everything about one molecule, in the process that this is called in."""
    functional = measure.Stopwatch(taufree.load_model(setup.model))
    warm_up = Atoms("H2", [(0, 0, 0), (0, 0, 0.74)])  # libraries load at the first call
    _first_builds(warm_up, functional, "def2-svp", 0, None)
    functional.geometry_s.clear()

    atoms = systems.family_member(family, n_atoms)
    fields, dm, memory = _first_builds(
        atoms,
        functional,
        setup.basis,
        setup.grid_level,
        setup.max_memory,
        alone=len(atoms) > setup.parent_atoms,
    )
    functional.potential_s.clear()
    tasks = {name: lambda mf=mf: measure.xc_build(mf, dm) for name, mf in fields.items()}
    builds = measure.interleaved(tasks, setup.repeats)
    mf = fields[DEORBITALIZED]
    result: dict[str, Any] = {
        "family": family,
        "formula": atoms.get_chemical_formula(),
        "n_atoms": len(atoms),
        "n_ao": mf.mol.nao,
        "n_points": mf.grids.weights.size,
        "n_evaluated": len(functional.density[0]),
        "tokens_in_sight": functional.in_sight,
        "geometry_s": functional.geometry_s[-1],
        NETWORK: measure.spread(functional.potential_s),
        "builds": {name: measure.spread(seconds) for name, seconds in builds.items()},
        "memory_mb": memory,
        "orbitals_mb": mf._numint._cache.orbitals.kept_mb,
    }
    if len(atoms) <= setup.reference_atoms:
        del fields, mf
        error = functional.exchange - reference_exchange(functional)
        result["fast_minus_reference_hartree_per_atom"] = error / len(atoms)
    return result


def _first_builds(
    atoms: Atoms,
    functional: Functional,
    basis: str,
    grid_level: int,
    max_memory: int | None,
    *,
    alone: bool = False,
) -> tuple[dict[str, Any], np.ndarray, dict[str, float | None]]:
    """Each functional's first build and its peak memory; PySCF's own before the network's."""
    fields = measure.mean_fields(atoms, functional, basis, grid_level, max_memory)
    dm = fields[GGA].get_init_guess(key="minao")
    fields[GGA].initialize_grids(dm=dm)
    grids = fields[GGA].grids
    if alone:
        fields = {DEORBITALIZED: fields[DEORBITALIZED]}
    memory: dict[str, float | None] = {}
    for name in [n for n in fields if n != DEORBITALIZED] + [DEORBITALIZED]:
        fields[name].grids = grids
        with measure.PeakMemory() as peak:
            measure.xc_build(fields[name], dm)
        memory[name] = peak.mb
    return fields, dm, memory


def reference_exchange(functional: measure.Stopwatch) -> float:
    """E_x of the last density in the plain form, the network in float64."""
    plain = Functional(copy.deepcopy(functional.network).double())
    rho, grad_rho, weights = functional.density
    coords, centers = functional.coords
    geometry = plain.geometry(coords, centers)
    with torch.no_grad():
        return float(weights @ plain.energy_density(rho, grad_rho, weights, geometry))


def exponents(results: list[dict[str, Any]]) -> dict[str, float]:
    """Slopes of ln(time) and ln(memory) against ln(atoms), by least squares."""
    fits = {}
    for name, (atoms, values) in curves(results).items():
        if len(set(atoms)) > 1 and all(value and value > 0 for value in values):
            fits[name] = float(np.polyfit(np.log(atoms), np.log(values), 1)[0])
    return fits


def curves(results: list[dict[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """What is fitted and drawn, by name: numbers of atoms, and what was measured there."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for r in results:
        measured = {
            NETWORK: r[NETWORK]["median_s"],
            **{f"{n}, XC build": build["median_s"] for n, build in r["builds"].items()},
            "geometry, once": r["geometry_s"],
            **{f"{n}, memory": mb for n, mb in r["memory_mb"].items()},
        }
        for name, value in measured.items():
            atoms, values = found.setdefault(name, ([], []))
            atoms.append(r["n_atoms"])
            values.append(value)
    return found


def failure(result: dict[str, Any]) -> str | None:
    """Sizes that the system killed, most likely for memory."""
    names = ", ".join(result["failures"])
    return f"no memory for {names}: leave out these sizes or lower --max-memory." if names else None


def table(result: dict[str, Any]) -> Table:
    """A row a molecule; network time by grid point, the mean number of tokens that one sees."""
    functionals = [DEORBITALIZED, GGA, result["parent"]]
    short = ["deorb.", *functionals[1:]]
    columns = ["", "atoms", "points", "network\ns", "\nµs/pt", "tokens\nin sight", "geom.\ns"]
    columns += [f"{n}\ns" for n in short] + [f"{n}\nMB" for n in short]
    columns += ["fast−ref\nHa/atom"]
    title = f"XC build, {result['settings']['basis']}, PySCF's first-guess densities"
    table = measure.new_table(title, columns, result)
    for family, fits in result["exponents"].items():
        table.add_section()
        for run in [r for r in result["results"] if r["family"] == family]:
            network = run[NETWORK]["median_s"]
            difference = run.get("fast_minus_reference_hartree_per_atom")
            table.add_row(
                run["formula"],
                str(run["n_atoms"]),
                f"{run['n_points']:,}",
                f"{network:.3f}",
                f"{1e6 * network / run['n_evaluated']:.2f}",
                f"{run['tokens_in_sight']:.1f}",
                f"{run['geometry_s']:.3f}",
                *(_seconds(run["builds"].get(n)) for n in functionals),
                *(_megabytes(run["memory_mb"].get(n)) for n in functionals),
                "" if difference is None else f"{difference:+.0e}",
            )
        powers = [fits.get(n) for n in (NETWORK, "geometry, once")]
        powers += [fits.get(f"{n}, XC build") for n in functionals]
        powers += [fits.get(f"{n}, memory") for n in functionals]
        shown = ["" if k is None else f"{k:.2f}" for k in powers]
        table.add_row("exponent", "", "", shown[0], "", "", *shown[1:])
    return table


def _seconds(build: dict[str, Any] | None) -> str:
    return "" if build is None else f"{build['median_s']:.2f}"


def _megabytes(mb: float | None) -> str:
    return "" if mb is None else f"{mb:,.0f}"


def plot(result: dict[str, Any]) -> Figure:
    """Time and memory against atoms, double logarithmic, with the fitted exponents."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    panels = dict(zip(("XC build", OWN, "memory"), figure.subplots(1, 3), strict=True))
    for family, fits in result["exponents"].items():
        runs = [r for r in result["results"] if r["family"] == family]
        for name, (atoms, values) in curves(runs).items():
            panel = next((p for p in panels if name.endswith(p)), OWN)
            label = name.removesuffix(f", {panel}")
            panels[panel].loglog(
                atoms,
                values,
                marker=MARKERS.get(family, "^"),
                linestyle="-" if family == "alkane" else "--",
                color=measure.color(name if panel != OWN else DEORBITALIZED),
                alpha=0.5 if name.startswith("geometry") else 1,
                label=f"{family}: {label}" + (f" ∝ N^{fits[name]:.2f}" if name in fits else ""),
            )
    titles = ("XC build, later ones (s)", "network alone (s)", "peak memory, first build (MB)")
    for axes, title in zip(panels.values(), titles, strict=True):
        axes.set(xlabel="atoms", title=title)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(ScalarFormatter())
        axes.grid(which="both", alpha=0.25)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize=8, frameon=False)
    return measure.sign(figure, result)
