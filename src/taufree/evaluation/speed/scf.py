"""A whole self-consistent calculation: deorbitalized beside PBE and the parent."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ase import Atoms
from matplotlib.figure import Figure
from pyscf import dft
from rich.table import Table

from taufree.console import kept, write_json
from taufree.evaluation.speed import measure, systems
from taufree.evaluation.speed.measure import Say
from taufree.functional import Functional
from taufree.model.storage import fingerprint

DEFAULT: dict[str, Callable[[], Atoms]] = {
    "benzene": systems.benzene,
    "C16H34": lambda: systems.alkane(16),
}
"""What is run if no file is given: a small molecule, and one of 50 atoms."""


def bench_scf(
    functional: Functional,
    *,
    file: Path | None = None,
    basis: str = "def2-tzvp",
    grid_level: int = 3,
    repeats: int = 5,
    max_memory: int | None = None,
    say: Say,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Wall times from PySCF's first guess to convergence, in the same process, in turn.

    Grids, density-fitting integrals and all cycles are in it, as a user would wait for them. Every
    finished turn stands in the file ``keep``, and is taken from there if it was measured with the
    same settings.
    """
    conditions = measure.conditions(functional)
    if file is None:
        molecules = {name: make() for name, make in DEFAULT.items()}
    else:
        molecules = dict([measure.read_or(systems.benzene, file)])
    warm_up = Atoms("H2", [(0, 0, 0), (0, 0, 0.74)])  # libraries load at the first call
    for name in (functions := list(measure.mean_fields(warm_up, functional, "def2-svp", 0, None))):
        _converge(warm_up, name, functional, "def2-svp", 0, None)
    parent = functional.parent.xc
    settings = {
        "on": {key: conditions[key] for key in ("cpu", "threads", "device")},
        "basis": basis,
        "grid_level": grid_level,
        "max_memory": max_memory,
        "fingerprint": fingerprint(functional),
        "molecules": {name: _checksum(atoms) for name, atoms in molecules.items()},
    }
    done = {one["molecule"]: one for one in kept(keep, settings)}
    result: dict[str, Any] = {"benchmark": "scf", "conditions": conditions, "parent": parent}
    result |= {"settings": settings, "results": list(done.values())}
    for molecule, atoms in molecules.items():
        runs = done[molecule]["runs"] if molecule in done else {name: [] for name in functions}
        for turn in range(len(runs[parent]), repeats):
            for name in functions:
                say(f"{molecule} {basis}: {name}, {turn + 1} of {repeats}")
                runs[name].append(_converge(atoms, name, functional, basis, grid_level, max_memory))
            done[molecule] = _summary(molecule, atoms, basis, grid_level, runs, parent)
            result["results"] = list(done.values())
            if keep:
                write_json(keep, result)
    return result


def _checksum(atoms: Atoms) -> str:
    return hashlib.sha256(atoms.numbers.tobytes() + atoms.positions.tobytes()).hexdigest()


def _converge(
    atoms: Atoms,
    name: str,
    functional: Functional,
    basis: str,
    grid_level: int,
    max_memory: int | None,
) -> dict[str, Any]:
    """One SCF from scratch, and how much of it went into the XC builds."""
    mf = measure.mean_fields(atoms, functional, basis, grid_level, max_memory)[name]
    xc_s: list[float] = []
    _timed(mf._numint, "nr_rks", xc_s)
    start = time.perf_counter()
    energy = mf.kernel()
    return {
        "wall_s": time.perf_counter() - start,
        "xc_s": sum(xc_s),
        "xc_builds": len(xc_s),
        "energy_hartree": float(energy),
        "cycles": int(mf.cycles),
        "converged": bool(mf.converged),
        "n_ao": mf.mol.nao,
        "n_points": mf.grids.weights.size,
    }


def _timed(owner: dft.numint.NumInt, method: str, seconds: list[float]) -> None:
    call = getattr(owner, method)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - start)

    setattr(owner, method, timed)


def _summary(
    molecule: str,
    atoms: Atoms,
    basis: str,
    grid_level: int,
    runs: dict[str, list[dict[str, Any]]],
    parent: str,
) -> dict[str, Any]:
    functionals = {
        name: {
            **measure.spread([run["wall_s"] for run in repeats]),
            "xc_median_s": measure.spread([run["xc_s"] for run in repeats])["median_s"],
            "xc_builds": repeats[-1]["xc_builds"],
            "cycles": repeats[-1]["cycles"],
            "converged": all(run["converged"] for run in repeats),
            "energy_hartree": repeats[-1]["energy_hartree"],
        }
        for name, repeats in runs.items()
    }
    whole = functionals[parent]["median_s"]
    return {
        "molecule": molecule,
        "basis": basis,
        "grid_level": grid_level,
        "n_atoms": len(atoms),
        "n_ao": runs[parent][-1]["n_ao"],
        "n_points": runs[parent][-1]["n_points"],
        "functionals": functionals,
        "runs": runs,
        "ratio_to_parent": {name: f["median_s"] / whole for name, f in functionals.items()},
    }


def unconverged(result: dict[str, Any]) -> str | None:
    """What to tell the user when one did not converge: its time then means little."""
    names = [
        f"{name} of {run['molecule']}"
        for run in result["results"]
        for name, one in run["functionals"].items()
        if not one["converged"]
    ]
    return (
        f"did not converge: {', '.join(names)}; its time is no time to solution." if names else None
    )


def table(result: dict[str, Any]) -> Table:
    """Wall times, cycles and energies."""
    columns = ["SCF", "median / s", "min / s", "max / s", "ratio to parent", "XC / s", "cycles"]
    table = measure.new_table("Whole SCF, density-fitted", [*columns, "energy / hartree"], result)
    for run in result["results"]:
        table.add_section()
        table.add_row(
            f"[bold]{run['molecule']} {run['basis']}[/bold]: {run['n_atoms']} atoms, "
            f"{run['n_ao']} AOs"
        )
        for name, one in run["functionals"].items():
            times = [f"{one[k]:.2f}" for k in ("median_s", "min_s", "max_s")]
            ratio = f"{run['ratio_to_parent'][name]:.3f}"
            cycles = f"{one['cycles']}{'' if one['converged'] else ', NOT converged'}"
            energy = f"{one['energy_hartree']:.6f}"
            table.add_row(name, *times, ratio, f"{one['xc_median_s']:.2f}", cycles, energy)
    return table


def plot(result: dict[str, Any]) -> Figure:
    """Wall time of each functional and molecule; the XC builds' part of it in full colour."""
    runs = result["results"]
    figure = Figure(figsize=(3 + 3 * len(runs), 4.6), layout="constrained")
    for axes, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
        functionals = run["functionals"]
        names, colors = list(functionals), [measure.color(n) for n in functionals]
        wall = [functionals[n]["median_s"] for n in names]
        low = [functionals[n]["median_s"] - functionals[n]["min_s"] for n in names]
        high = [functionals[n]["max_s"] - functionals[n]["median_s"] for n in names]
        bars = axes.bar(names, wall, yerr=[low, high], capsize=3, color=colors, alpha=0.4)
        axes.bar(names, [functionals[n]["xc_median_s"] for n in names], color=colors)
        labels = [
            f"{run['ratio_to_parent'][n]:.2f}\n{functionals[n]['cycles']} cycles" for n in names
        ]
        axes.bar_label(bars, labels, padding=6)
        axes.margins(y=0.2)
        axes.set(ylabel="wall time (s)", title=f"{run['molecule']} {run['basis']}")
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    figure.suptitle(f"Whole SCF; full colour: XC builds; numbers: ratio to {result['parent']}")
    return measure.sign(figure, result)
