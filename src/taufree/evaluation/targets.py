"""What the project set out to reach on the test split, beside what results say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from taufree.evaluation.density import MODEL
from taufree.evaluation.side_by_side import rows

Result = Mapping[str, Any]
Best = Callable[[Result, str, str], str]
POTENTIALS = (
    ("vrho_mha", "v_ρ", "mHa"),
    ("vsigma_sigma_mha", "v_σ σ/ρ", "mHa"),
    ("vtau", "v_τ", ""),
)
GROUPS = {
    "all molecules": "molecules",
    "crystals": "crystals",
    "crystals-gth": "crystals with pseudopotentials",
}
REACTIONS = {"dbh24": ("barrier heights of DBH24", 0.5), "s22": ("interactions of S22", 0.15)}


class Line(NamedTuple):
    """One target: the texts of its row, and whether it is met."""

    measure: str
    target: str
    figure: str
    comparator: str
    met: bool


def table(found: Iterable[tuple[Line, str, str]]) -> Table:
    """One row a line, with the model and the file it is from."""
    table = Table("measure", "target", "figure", "comparator", "", "model", "file")
    for line, model, file in found:
        verdict = "met" if line.met else "missed"
        table.add_row(*line[:-1], verdict, escape(Path(model).name), escape(file))
    table.caption = (
        "Means are of absolute differences to the parent; all but reactions are of the test split."
    )
    return table


def lines(kind: str, result: Result, rivals: Sequence[Result] = ()) -> Iterator[Line]:
    """The targets that a result of this kind says something about.

    Self-consistent ones stand beside the best of ``rivals``, comparators' results of the same kind
    for the same systems and settings.
    """
    if kind == "density" and result["split"] == "test":
        yield from _density(result)
    elif kind == "reactions" or (kind in ("scf", "solids") and result["split"] == "test"):
        found = {"reactions": _reactions, "scf": _scf, "solids": _solids}[kind]
        yield from found(result, _best_of(kind, result, rivals))


def _best_of(kind: str, result: Result, rivals: Sequence[Result]) -> Best:
    """What names the rival whose mean is lowest, with this mean, by a summary, its key and unit."""
    known = [row for r in rivals if r["parent"] == result["parent"] for row in rows(kind, r)]

    def best(summary: Result, key: str, unit: str) -> str:
        what = next(what for _, what, found in rows(kind, result) if found is summary)
        same = [(found[key], name) for name, of, found in known if of == what]
        value, name = min((x for x in same if x[0] is not None), default=(None, ""))
        return "" if value is None else f"{name} {value:.3g} {unit}"

    return best


def _line(
    measure: str, value: float, bound: float, unit: str, comparator: str = "", why: str = ""
) -> Line:
    target = f"≤ {bound:.3g} {unit}".rstrip() + (f", {why}" if why else "")
    return Line(measure, target, f"{value:.3g} {unit}".rstrip(), comparator, value <= bound)


def _density(result: Result) -> Iterator[Line]:
    groups = result["means"]
    if means := groups.get("all molecules"):
        name, value = _best(means, "de_x_mha")
        error = means[MODEL]["de_x_mha"]
        yield _line("|ΔE_x| of molecules", error, 0.5, "mHa", f"{name} {value:.3g} mHa")
    if "prototype" in groups:
        name, value = _best(groups["prototype"], "l1_mha")
        l1, best = groups["prototype"][MODEL]["l1_mha"], f"{name} {value:.3g} mHa"
        yield _line("∫|Δe_x| of the prototype's systems", l1, 10, "mHa", best)
    if not means:
        return
    for group, of in GROUPS.items():
        if group not in groups:
            continue
        name, value = _best(groups[group], "l1_mha")
        l1, best = groups[group][MODEL]["l1_mha"], f"{name} {value:.3g} mHa"
        yield _line(f"∫|Δe_x| of {of}", l1, value / 3, "mHa", best, "1/3 of the comparator's")
        for key, label, unit in POTENTIALS:
            value, classic = groups[group][MODEL][key], groups[group]["PCopt"][key]
            best = f"PCopt {classic:.3g} {unit}".rstrip()
            yield _line(f"{label} of {of}", value, classic / 5, unit, best, "1/5 of PCopt's")
    if "cycles_mha" in means[MODEL]:
        cycles = means[MODEL]["cycles_mha"]
        why = "twice the converged ones'"
        name, value = _best(means, "cycles_mha")
        best = f"{name} {value:.3g} mHa"
        yield _line("|ΔE_x|, densities of cycles 1 to 3", cycles, 2 * error, "mHa", best, why)


def _best(means: Result, key: str) -> tuple[str, float]:
    """The deorbitalizer other than the model whose mean is lowest, and this mean."""
    others = {k: v[key] for k, v in means.items() if k not in ("count", MODEL) and key in v}
    return min(others.items(), key=lambda item: item[1])


def _scf(result: Result, best: Best) -> Iterator[Line]:
    found = result["summary"]
    potential = "" if result["potential"] == "ks" else f" ({result['potential']})"
    for key, label, bound, unit in (
        ("mean_atomization_kcal", "atomization energy, self-consistent, mean", 0.5, "kcal/mol"),
        ("max_atomization_kcal", "atomization energy, self-consistent, largest", 2, "kcal/mol"),
        ("mean_d_dipole_debye", "dipole", 0.02, "D"),
    ):
        if found[key] is not None:
            yield _line(label + potential, found[key], bound, unit, best(found, key, unit))
    converged = round(found["converged"] * found["n_systems"])
    yield from _convergence(found, "molecules" + potential, converged, found["n_systems"])
    if atoms := result["atoms"]:
        alone = sum(atom["deorbitalized"]["converged"] for atom in atoms)
        yield _converged("their free atoms" + potential, alone, len(atoms))


def _reactions(result: Result, best: Best) -> Iterator[Line]:
    for name, (label, bound) in REACTIONS.items():
        if (found := result["summary"].get(name)) and found["compared"]:
            measure = f"{label}, {found['compared']} of them, {result['basis']}"
            key, unit = "mean_error_kcal", "kcal/mol"
            yield _line(measure, found[key], bound, unit, best(found, key, unit))
            of = f"{label}, {result['basis']}"
            yield from _convergence(found, of, found["converged"], found["n_systems"])


def _solids(result: Result, best: Best) -> Iterator[Line]:
    found = result["summary"]
    for key, label, bound, unit in (
        ("mean_d_lattice_constant_angstrom", "lattice constant", 0.005, "Å"),
        ("mean_d_bulk_modulus_percent", "bulk modulus", 1, "%"),
        ("mean_delta_mev", "Δ of energy-volume curves", 0.5, "meV/atom"),
    ):
        if found[key] is not None:
            yield _line(f"{label} of crystals", found[key], bound, unit, best(found, key, unit))
    yield from _convergence(found, "crystals", found["converged"], found["n_points"])


def _converged(of: str, converged: int, n: int) -> Line:
    return Line(f"converged, {of}", "all", f"{converged} of {n}", "", converged == n)


def _convergence(found: Result, of: str, converged: int, n: int) -> Iterator[Line]:
    yield _converged(of, converged, n)
    ours, parents = found["median_cycles"], found["parent_median_cycles"]
    if ours is not None and parents is not None:
        parent = f"parent {parents:g}"
        yield _line(f"median cycles, {of}", ours, parents + 2, "", parent, "the parent's + 2")
