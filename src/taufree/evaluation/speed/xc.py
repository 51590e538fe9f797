"""One XC build, energy and matrix: deorbitalized beside PBE and the parent, also in crystals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table

import taufree
from taufree.evaluation.speed import measure, stages, systems
from taufree.evaluation.speed.measure import DEORBITALIZED, GGA, Say
from taufree.functional import Functional
from taufree.hosts.exchange_correlation import periodic_vectors
from taufree.hosts.single_point import Settings, mean_field
from taufree.model.tokens import images

FIRST = f"{DEORBITALIZED}, first"
PROFILED_BUILDS = 3


def bench_xc(
    functional: Functional,
    *,
    file: Path | None = None,
    bases: list[str],
    grid_level: int = 3,
    repeats: int = 5,
    max_memory: int | None = None,
    say: Say,
) -> dict[str, Any]:
    """Times of one XC build, in the same process, in turn.

    A build of the deorbitalized functional is timed twice: the first of an SCF, when AO values
    and neighbour lists are made, and a later one, when they are there. PBE and the parent, run by
    PySCF, keep nothing from build to build. The density matrix is that of two PBE cycles, with
    its occupied orbitals, which PySCF uses for all three.
    """
    conditions = measure.conditions(functional)
    name, atoms = measure.read_or(systems.benzene, file)
    results = []
    for basis in bases:
        fields = measure.mean_fields(atoms, functional, basis, grid_level, max_memory)
        gga = fields[GGA]
        say(f"{name} {basis}: a density from two PBE cycles")
        gga.max_cycle = 2
        gga.kernel()
        dm = gga.make_rdm1()
        for mf in fields.values():
            mf.grids = gga.grids
        say(f"{name} {basis}: {repeats} XC builds each")
        what = {"molecule": name, "basis": basis, "grid_level": grid_level}
        results.append(what | _measure(fields, functional, dm, repeats))
    parent = functional.parent.xc
    return {"benchmark": "xc", "conditions": conditions, "parent": parent, "results": results}


def bench_crystals(
    functional: Functional,
    *,
    names: list[str],
    kpts: tuple[int, int, int],
    repeats: int = 5,
    max_memory: int | None = None,
    say: Say,
) -> dict[str, Any]:
    """Times of one XC build of crystals, as `bench_xc` takes them, at PySCF's first guess.

    And of the network alone, see `_network`.
    """
    conditions = measure.conditions(functional)
    results = []
    for name in names:
        atoms, basis = systems.CRYSTALS[name]
        settings = Settings(basis=basis, kpts=kpts, smearing_ev=0.1, max_memory=max_memory)
        fields = {}
        for xc in (functional.parent.xc, GGA):
            fields[xc] = mean_field(atoms, settings)
            fields[xc].xc = xc
        parent = fields[functional.parent.xc]
        parent.grids.build(with_non0tab=True)
        for mf in fields.values():
            mf.grids = parent.grids
        fields = {DEORBITALIZED: taufree.deorbitalize(parent, functional)} | fields
        say(f"{name} {basis}, {kpts} k-points: {repeats} XC builds each")
        dm = np.asarray(parent.get_init_guess())
        what = {"molecule": name, "basis": basis, "kpts": kpts}
        run = what | _measure(fields, functional, dm, repeats)
        results.append(run | {"network": _network(parent, functional, dm, repeats)})
    parent = functional.parent.xc
    return {"benchmark": "crystals", "conditions": conditions, "parent": parent, "results": results}


def _network(mf: Any, functional: Functional, dm: np.ndarray, repeats: int) -> dict[str, Any]:
    """The network's time, energy and derivatives, in a crystal and in a molecule beside it.

    The molecule has the same points, and around them, as nuclei of its own, all images that the
    crystal's points see: what differs is that a crystal's images share few tokens.
    """
    watch = measure.Stopwatch(functional)
    measure.xc_build(taufree.deorbitalize(mf, watch), dm)
    coords, centers = watch.coords
    rho, grad_rho, weights = watch.density
    lattice = torch.from_numpy(periodic_vectors(mf.cell))
    seen = images(centers, lattice, coords, functional.network.config.cutoff)[1]
    geometries = {
        "crystal": functional.geometry(coords, centers, lattice),
        "molecule": functional.geometry(coords, seen),
    }
    tasks = {
        name: lambda geometry=geometry: functional.potential(rho, grad_rho, weights, geometry)
        for name, geometry in geometries.items()
    }
    measure.interleaved(tasks, 1)
    found = {name: measure.spread(s) for name, s in measure.interleaved(tasks, repeats).items()}
    token_map = geometries["crystal"].token_map
    return {
        **found,
        "n_points": len(coords),
        "neighbours": len(token_map.token) / token_map.n_tiles,
        "ratio": found["crystal"]["median_s"] / found["molecule"]["median_s"],
    }


def _measure(
    fields: dict[str, Any], functional: Functional, dm: np.ndarray, repeats: int
) -> dict[str, Any]:
    seconds, energies = _time(fields, functional, dm, repeats)
    parent = functional.parent.xc
    sampler = stages.StageSampler()
    with sampler:
        for _ in range(PROFILED_BUILDS):
            measure.xc_build(fields[DEORBITALIZED], dm)
    builds = {label: measure.spread(times) for label, times in seconds.items()}
    later = builds[DEORBITALIZED]["median_s"]
    return {
        "n_atoms": fields[parent].mol.natm,
        "n_ao": fields[parent].mol.nao,
        "n_points": fields[parent].grids.weights.size,
        "builds": builds,
        "ratio_to_parent": {
            label: b["median_s"] / builds[parent]["median_s"] for label, b in builds.items()
        },
        "exc_hartree": energies,
        "profile_s": {stage: share * later for stage, share in sampler.shares().items()},
        "hot_lines": sampler.hot_lines(),
    }


def _time(
    fields: dict[str, Any], functional: Functional, dm: np.ndarray, repeats: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    energies: dict[str, float] = {}

    def build(name: str) -> None:
        energies[name] = float(measure.xc_build(fields[name], dm)[1])

    def first() -> None:
        fresh = taufree.deorbitalize(fields[functional.parent.xc], functional)
        fields[DEORBITALIZED]._numint = fresh._numint
        build(DEORBITALIZED)

    tasks = {FIRST: first} | {name: lambda name=name: build(name) for name in fields}
    measure.interleaved(tasks, 1)  # libraries load and threads start at the first call
    return measure.interleaved(tasks, repeats), energies


def table(result: dict[str, Any]) -> Table:
    """Medians and their ratio to the parent, and the stages of a later build."""
    columns = ["XC build", "median / s", "min / s", "max / s", "ratio to parent", "µs/point"]
    table = measure.new_table("XC build: energy and matrix, once", columns, result)
    for run in result["results"]:
        table.add_section()
        table.add_row(
            f"[bold]{run['molecule']} {run['basis']}[/bold]: {run['n_ao']} AOs, "
            f"{run['n_points']:,} points"
        )
        for name, build in run["builds"].items():
            numbers = [f"{build[k]:.3f}" for k in ("median_s", "min_s", "max_s")]
            ratio = f"{run['ratio_to_parent'][name]:.3f}"
            table.add_row(name, *numbers, ratio, f"{1e6 * build['median_s'] / run['n_points']:.2f}")
        later = run["builds"][DEORBITALIZED]["median_s"]
        for stage, seconds in run["profile_s"].items():
            table.add_row(f"  {stage}", f"{seconds:.3f}", "", "", f"{seconds / later:.0%} of it")
        if network := run.get("network"):
            label = f"network, {network['neighbours']:.0f} neighbours"
            for name, of in (
                ("crystal", ""),
                ("molecule", f"crystal {network['ratio']:.2f} of it"),
            ):
                numbers = [f"{network[name][k]:.3f}" for k in ("median_s", "min_s", "max_s")]
                per_point = f"{1e6 * network[name]['median_s'] / network['n_points']:.2f}"
                table.add_row(f"{label}, {name}", *numbers, of, per_point)
    return table


def plot(result: dict[str, Any]) -> Figure:
    """Left: the builds' medians with their extremes. Right: stages of the deorbitalized build."""
    runs = result["results"]
    figure = Figure(figsize=(11, 1.6 + 1.7 * len(runs)), layout="constrained")
    for row, run in zip(figure.subplots(len(runs), 2, squeeze=False), runs, strict=True):
        builds = run["builds"]
        names = list(builds)
        medians = [builds[n]["median_s"] for n in names]
        extremes = [
            [builds[n]["median_s"] - builds[n]["min_s"] for n in names],
            [builds[n]["max_s"] - builds[n]["median_s"] for n in names],
        ]
        bars = row[0].barh(
            names, medians, xerr=extremes, capsize=3, color=[measure.color(n) for n in names]
        )
        bars[names.index(FIRST)].set_alpha(0.5)
        ratios = [f"{run['ratio_to_parent'][n]:.2f}" for n in names]
        row[0].bar_label(bars, ratios, padding=10)
        row[0].margins(x=0.15)
        row[0].set(xlabel="wall time (s); numbers: ratio to the parent")
        row[0].set_title(f"{run['molecule']} {run['basis']}, {run['n_points']:,} points")
        stages_ = list(run["profile_s"].items())[:10]
        row[1].barh(
            [s for s, _ in stages_], [t for _, t in stages_], color=measure.color(DEORBITALIZED)
        )
        row[1].set(xlabel="wall time (s)", title="stages of a later deorbitalized build")
        for axes in row:
            axes.invert_yaxis()
            axes.grid(axis="x", alpha=0.3)
            axes.set_axisbelow(True)
    return measure.sign(figure, result)
