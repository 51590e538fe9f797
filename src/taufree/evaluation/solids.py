"""Energy-volume curves of crystals beside the parent's: same basis, k mesh, grid and integrals."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase.units import Hartree
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from taufree.comparators.self_consistent import Rival, load
from taufree.console import number
from taufree.data.crystals import at_volume, bonding, lattice_constant
from taufree.data.splits import Split, systems_of
from taufree.data.systems import System
from taufree.errors import UserError
from taufree.evaluation.equation_of_state import EOS, GPA_PER_ATOMIC, delta, fit
from taufree.evaluation.self_consistent import WHICH, Task, Which, converge_all, has_energy
from taufree.evaluation.thermochemistry import atom
from taufree.evaluation.workers import Run
from taufree.functional import Functional

STEP = 1.045
"""Ratio of neighbouring volumes. All are the table's times a power of it, so that curves that are
extended keep what they have."""
REACH = 2
"""Volumes to either side of the lowest: the range of Δ, ±6% of the minimum, is inside."""
START = {"metal": 0, "covalent": 1, "ionic": -2, "layered": 0, "molecular": 0}
"""Power of the volume around which the parent's minimum is sought first."""
FARTHEST = 8
"""Largest power, either sign: ``STEP`` ** 8 = 1.42. A minimum beyond it is none of a crystal."""
METAL_EXPONENT = 0.05
"""Metals keep exponents down to here: without them Al would shrink by 17% of its volume. The data
for training leave out more, see `taufree.data.systems.Periodicity`."""
LEVELS = {"metal": 3, "covalent": 1, "ionic": 1, "layered": 1, "molecular": 3}
"""PySCF's grid level, of both functionals: crystals' points are many, but level 1 leaves diffuse
functions (Al: 4 mHa) and shallow curves (Ar: 0.04 mHa of noise) unresolved."""
ATOMS_LEVEL = 3
COLUMNS = {
    "d_lattice_constant_angstrom": ("Δa", "Å", "+.4f"),
    "d_bulk_modulus_percent": ("ΔB", "%", "+.2f"),
    "d_cohesive_ev": ("ΔE_coh", "eV/atom", "+.3f"),
    "delta_mev": ("Δ", "meV/atom", ".2f"),
    "d_gap_ev": ("ΔE_gap", "eV", "+.3f"),
    "d_moment": ("ΔM", "μB", "+.3f"),
}


def evaluate(
    model: str | Path | Functional | Rival,
    split: Split = "test",
    *,
    out: Path | None = None,
    systems: Sequence[System] | None = None,
    parent_only: bool = False,
    scheduler: str | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Converge a model and its parent at five volumes of every crystal; fit, compare.

    The third is the one where the parent's energy is lowest: as long as it is another, the parent
    is calculated at further ones. The model follows at the same volumes.

    The settings are those of `taufree.data.periodic` (all-electron def2-SVP without exponents below
    0.1, of metals 0.05; k mesh and smearing of `taufree.data.crystals`; Becke grids of ``LEVELS``).
    Cohesive energies are against the atoms of `free_atoms`. No level shift and no second try for
    either functional.

    Parameters
    ----------
    model : str, Path, Functional or Rival
        Name of a bundled model, a path, or a loaded functional; or another deorbitalizer: an
        analytic recipe's name, or a comparator's file.
    split : "train", "validation" or "test"
        Its all-electron crystals are calculated ...
    systems : sequence of System, optional
        ... unless these, at equilibrium, are named.
    out : Path, optional
        Folder that keeps every finished point: an interrupted evaluation goes on there, and another
        model's takes over the parent's results and all integrals.
    parent_only : bool
        Calculate the parent's points, which serve every model, and compare nothing.
    scheduler, workers : optional
        Address of a Dask scheduler, or number of local processes (default: one a core).
    console : Console, optional
        Where progress is shown.

    Returns
    -------
    dict
        ``crystals``: a list with ``name``, ``formula``, ``bonding``, ``n_atoms``, ``grid_level``,
        ``mesh``, ``volumes`` (bohr³ per cell); ``deorbitalized`` and ``parent``, each with the
        ``points`` (as `taufree.evaluation.self_consistent.converge` reports them), ``eos``,
        ``lattice_constant_angstrom``, ``bulk_modulus_gpa``, ``cohesive_ev`` (per atom), ``gap_ev``,
        ``moment`` (μB per cell), both at the middle volume, null where there is none; differences
        to the parent, named as in ``COLUMNS``, Δ of `taufree.evaluation.equation_of_state.delta`
        among them, per atom. The parent's gap is that of its generalized Kohn-Sham potential.
        ``summary``: see `summary`.

    Raises
    ------
    UserError
        Nothing to calculate, a system of another parent, or no scheduler answers.
    """
    functional = load(model)
    chosen = _chosen(split, systems, functional)

    def run(tasks: Iterable[System], which: Which) -> dict[Task, Run]:
        options: dict[str, Any] = {"scheduler": scheduler, "workers": workers, "console": console}
        runs: dict[Task, Run] = {}
        by_level: dict[int, set[System]] = defaultdict(set)
        for task in tasks:
            by_level[_level(task)].add(task)
        for level, same in by_level.items():
            runs |= converge_all(same, functional, level, which=[which], out=out, **options)
        return runs

    atoms = {atom for crystal in chosen for atom in free_atoms(crystal)}
    runs = run(atoms, "parent")
    curves = _parents_curves(chosen, runs, run)
    if not parent_only:
        volumes = {point for crystal in chosen for point in curves[crystal]}
        runs |= run(atoms | volumes, "deorbitalized")
    lines = [_line(crystal, curves[crystal], runs) for crystal in chosen]
    return {
        "model": functional.name,
        "comparator": isinstance(functional, Rival),
        "potential": "ks",
        "parent": functional.parent.xc,
        "split": split if systems is None else None,
        "summary": summary(lines),
        "crystals": lines,
    }


def _chosen(
    split: Split, systems: Sequence[System] | None, functional: Functional | Rival
) -> list[System]:
    if systems is None:
        names = bonding()
        systems = [s for s in systems_of(split) if s.kind == "crystals" and s.name in names]
    if not systems:
        raise UserError("no crystal to calculate: name some, or choose a split")
    for system in systems:
        if system.kind != "crystals" or system.name not in bonding():
            raise UserError(f"{system.name} is no all-electron crystal: see data/crystals.csv")
    return [replace(_complete(system), parent=functional.parent.xc) for system in systems]


def _level(system: System) -> int:
    return LEVELS[bonding()[system.name.split("@")[0]]] if system.period else ATOMS_LEVEL


def _complete(crystal: System) -> System:
    """The crystal in the basis of the benchmark."""
    if bonding()[crystal.name] != "metal" or crystal.period is None:
        return crystal
    return replace(crystal, period=replace(crystal.period, exp_to_discard=METAL_EXPONENT))


def _parents_curves(
    crystals: Sequence[System],
    runs: dict[Task, Run],
    run: Callable[[Iterable[System], Which], dict[Task, Run]],
) -> dict[System, list[System]]:
    """The volumes of every crystal around the parent's lowest; its results are added to ``runs``.

    A curve that falls beyond ``FARTHEST`` ends there; one of which a point fails stays as it is.
    """
    middles = {crystal: START[bonding()[crystal.name]] for crystal in crystals}
    pending = set(crystals)
    while pending:
        curves = {crystal: points(crystal, middles[crystal]) for crystal in crystals}
        wanted = {point for crystal in pending for point in curves[crystal]}
        runs |= run({point for point in wanted if (point, "parent") not in runs}, "parent")
        for crystal in list(pending):
            found = [runs[point, "parent"] for point in curves[crystal]]
            energies = [r["energy_hartree"] for r in found if r["converged"]]
            step = int(np.argmin(energies)) - REACH if len(energies) == len(found) else 0
            middle = int(np.clip(middles[crystal] + step, -FARTHEST, FARTHEST))
            if middle == middles[crystal]:
                pending.remove(crystal)
            middles[crystal] = middle
    return curves


def points(crystal: System, middle: int) -> list[System]:
    """The crystal at the volumes of its curve around the one of the power ``middle``."""
    return [at_volume(crystal, STEP**n) for n in range(middle - REACH, middle + REACH + 1)]


def free_atoms(crystal: System) -> list[System]:
    """Spin-polarized atoms of its elements.

    They keep the small exponents that the crystal discards: there the neighbours' functions stand
    in for them, and without them a free alkali atom would be off by electronvolts.
    """
    return [
        replace(atom(symbol), basis=crystal.basis, parent=crystal.parent)
        for symbol in sorted(set(crystal.symbols))
    ]


def _line(crystal: System, curve: Sequence[System], runs: Mapping[Task, Run]) -> dict[str, Any]:
    assert crystal.period is not None
    line: dict[str, Any] = {
        "name": crystal.name,
        "formula": crystal.formula,
        "bonding": bonding()[crystal.name],
        "n_atoms": len(crystal.symbols),
        "grid_level": _level(crystal),
        "mesh": list(crystal.period.mesh),
        "volumes": [_volume(point) for point in curve],
    }
    curves: dict[Which, EOS | None] = {}
    for which in WHICH:
        curves[which], line[which] = _curve(crystal, curve, which, runs)
    first, second = curves["deorbitalized"], curves["parent"]
    distance = delta(first, second) if first and second else None
    ours, theirs = line["deorbitalized"], line["parent"]
    bulk = _difference(ours, theirs, "bulk_modulus_gpa")
    line |= {
        "d_lattice_constant_angstrom": _difference(ours, theirs, "lattice_constant_angstrom"),
        "d_bulk_modulus_percent": bulk and 100 * bulk / theirs["bulk_modulus_gpa"],
        "d_cohesive_ev": _difference(ours, theirs, "cohesive_ev"),
        "delta_mev": None if distance is None else 1000 * distance * Hartree / line["n_atoms"],
        "d_gap_ev": _difference(ours, theirs, "gap_ev"),
        "d_moment": _difference(ours, theirs, "moment"),
    }
    return line


def _volume(system: System) -> float:
    assert system.period is not None
    return float(abs(np.linalg.det(system.period.vectors)))


def _curve(
    crystal: System, curve: Sequence[System], which: Which, runs: Mapping[Task, Run]
) -> tuple[EOS | None, dict[str, Any]]:
    """Equation of state and what follows from it; a point that fails leaves the crystal without.

    Of a functional that was not asked for there are no points.
    """
    found = [runs[point, which] for point in curve if (point, which) in runs]
    energies = [run["energy_hartree"] for run in found if run["converged"]]
    complete = len(energies) == len(curve)
    eos = fit([_volume(point) for point in curve], energies) if complete else None
    middle = found[REACH] if found else {}
    result: dict[str, Any] = {
        "points": found,
        "eos": None if eos is None else vars(eos),
        "lattice_constant_angstrom": None,
        "bulk_modulus_gpa": None,
        "cohesive_ev": None,
        "gap_ev": middle.get("gap_ev"),
        "moment": middle.get("moment") if crystal.polarized else None,
    }
    if eos is None:
        return None, result
    scale = (eos.volume / _volume(crystal)) ** (1 / 3)
    result["lattice_constant_angstrom"] = scale * lattice_constant(crystal.name)
    result["bulk_modulus_gpa"] = eos.bulk_modulus * GPA_PER_ATOMIC
    atoms = {a.symbols[0]: runs[a, which] for a in free_atoms(crystal)}
    if all(has_energy(run) for run in atoms.values()):
        count = Counter(crystal.symbols)
        free = sum(n * atoms[symbol]["energy_hartree"] for symbol, n in count.items())
        result["cohesive_ev"] = (free - eos.energy) * Hartree / len(crystal.symbols)
    return eos, result


def _difference(ours: dict[str, Any], theirs: dict[str, Any], key: str) -> float | None:
    if ours[key] is None or theirs[key] is None:
        return None
    return float(ours[key] - theirs[key])


def summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Convergence, cycles, and mean and largest absolute differences with the worst crystal's name.

    ``converged`` and ``parent_converged`` count points; ``wall_ratio`` is the median ratio of wall
    times at points where both converged.
    """
    pairs = [
        (line["name"], *pair)
        for line in lines
        for pair in zip(*(line[which]["points"] for which in WHICH), strict=False)
    ]
    both = [pair for pair in pairs if all(run["converged"] for run in pair[1:])]
    found: dict[str, Any] = {
        "n_crystals": len(lines),
        "n_points": len(pairs),
        "converged": sum(ours["converged"] for _, ours, _ in pairs),
        "parent_converged": sum(theirs["converged"] for _, _, theirs in pairs),
        "not_converged": sorted({name for name, ours, _ in pairs if not ours["converged"]}),
        "median_cycles": _median([ours["cycles"] for _, ours, _ in both]),
        "parent_median_cycles": _median([theirs["cycles"] for _, _, theirs in both]),
        "wall_ratio": _median([ours["wall_s"] / theirs["wall_s"] for _, ours, theirs in both]),
    }
    for key in COLUMNS:
        errors = {line["name"]: abs(line[key]) for line in lines if line[key] is not None}
        found[f"mean_{key}"] = float(np.mean(list(errors.values()))) if errors else None
        found[f"max_{key}"] = max(errors.values(), default=None)
        found[f"worst_{key}"] = max(errors, key=lambda name: errors[name], default=None)
    return found


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def table(result: dict[str, Any]) -> Table:
    """One row a crystal, the parent's values and the differences to them; means; worst cases."""
    table = Table(
        title=f"crystals beside {result['parent']}",
        title_justify="left",
    )
    table.add_column("crystal", no_wrap=True)
    for column in ("a\nÅ", "B\nGPa", "E_coh\neV/atom", "E_gap\neV"):
        table.add_column(column, justify="right")
    for name, unit, _ in COLUMNS.values():
        table.add_column(f"{name}\n{unit}", justify="right")
    table.add_column("cycles", justify="right")
    table.add_column("time\ns", justify="right")
    for line in result["crystals"]:
        parent = line["parent"]
        table.add_row(
            escape(line["name"]),
            number(parent["lattice_constant_angstrom"], ".3f"),
            number(parent["bulk_modulus_gpa"], ".1f"),
            number(parent["cohesive_ev"], ".2f"),
            number(parent["gap_ev"], ".2f"),
            *(number(line[key], form) for key, (_, _, form) in COLUMNS.items()),
            " / ".join(_median_of(line[which]["points"], "cycles") for which in WHICH),
            " / ".join(_median_of(line[which]["points"], "wall_s") for which in WHICH),
        )
    table.add_section()
    found = result["summary"]
    for label, key in (("mean |Δ|", "mean_{}"), ("largest |Δ|", "max_{}")):
        cells = [number(found[key.format(name)], form[-3:]) for name, (*_, form) in COLUMNS.items()]
        table.add_row(label, "", "", "", "", *cells, "", "")
    worst = {column: found[f"worst_{name}"] for name, (column, *_) in COLUMNS.items()}
    table.caption = (
        f"converged: {found['converged']} of {found['n_points']} points, parent "
        f"{found['parent_converged']}; {number(found['wall_ratio'], '.2f')} of the parent's wall "
        "time (median); cycles, time: medians, deorbitalized / parent, NO: not converged\nworst: "
        + ", ".join(f"{column} {escape(name)}" for column, name in worst.items() if name)
    )
    return table


def _median_of(runs: Sequence[Run], key: str) -> str:
    if not all(run["converged"] for run in runs):
        return "NO"
    return f"{np.median([run[key] for run in runs]):.3g}" if runs else "–"
