"""What the project set out to reach on the test split, beside what results say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from taufree.evaluation.density import MODEL

Result = Mapping[str, Any]
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


def lines(kind: str, result: Result) -> Iterator[Line]:
    """The targets that a result of this kind says something about."""
    if kind == "reactions":
        yield from _reactions(result)
    elif result.get("split") == "test":
        yield from {"density": _density, "scf": _scf, "solids": _solids}.get(kind, _none)(result)


def _none(result: Result) -> Iterator[Line]:
    yield from ()


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
    name, value = _best(means, "l1_mha")
    l1, best = means[MODEL]["l1_mha"], f"{name} {value:.3g} mHa"
    yield _line("∫|Δe_x| of molecules", l1, value / 3, "mHa", best, "1/3 of the comparator's")
    for group, of in GROUPS.items():
        for key, label, unit in POTENTIALS if group in groups else ():
            value, classic = groups[group][MODEL][key], groups[group]["PCopt"][key]
            best = f"PCopt {classic:.3g} {unit}".rstrip()
            yield _line(f"{label} of {of}", value, classic / 5, unit, best, "1/5 of PCopt's")
    if "cycles_mha" in means[MODEL]:
        cycles = means[MODEL]["cycles_mha"]
        why = "twice the converged ones'"
        yield _line("|ΔE_x|, densities of cycles 1 to 3", cycles, 2 * error, "mHa", "", why)


def _best(means: Result, key: str) -> tuple[str, float]:
    """The deorbitalizer other than the model whose mean is lowest, and this mean."""
    others = {k: v[key] for k, v in means.items() if k not in ("count", MODEL) and key in v}
    return min(others.items(), key=lambda item: item[1])


def _scf(result: Result) -> Iterator[Line]:
    found = result["summary"]
    potential = "" if result["potential"] == "ks" else f" ({result['potential']})"
    for key, label, bound, unit in (
        ("mean_atomization_kcal", "atomization energy, self-consistent, mean", 0.5, "kcal/mol"),
        ("max_atomization_kcal", "atomization energy, self-consistent, largest", 2, "kcal/mol"),
        ("mean_d_dipole_debye", "dipole", 0.02, "D"),
    ):
        if found[key] is not None:
            yield _line(label + potential, found[key], bound, unit)
    converged = round(found["converged"] * found["n_systems"])
    yield from _convergence(found, "molecules" + potential, converged, found["n_systems"])
    if atoms := result["atoms"]:
        alone = sum(atom["deorbitalized"]["converged"] for atom in atoms)
        yield _converged("their free atoms" + potential, alone, len(atoms))


def _reactions(result: Result) -> Iterator[Line]:
    for name, (label, bound) in REACTIONS.items():
        if (found := result["summary"].get(name)) and found["compared"]:
            measure = f"{label}, {found['compared']} of them, {result['basis']}"
            yield _line(measure, found["mean_error_kcal"], bound, "kcal/mol")
            of = f"{label}, {result['basis']}"
            yield from _convergence(found, of, found["converged"], found["n_systems"])


def _solids(result: Result) -> Iterator[Line]:
    found = result["summary"]
    for key, label, bound, unit in (
        ("mean_d_lattice_constant_angstrom", "lattice constant", 0.005, "Å"),
        ("mean_d_bulk_modulus_percent", "bulk modulus", 1, "%"),
        ("mean_delta_mev", "Δ of energy-volume curves", 0.5, "meV/atom"),
    ):
        if found[key] is not None:
            yield _line(f"{label} of crystals", found[key], bound, unit)
    yield from _convergence(found, "crystals", found["converged"], found["n_points"])


def _converged(of: str, converged: int, n: int) -> Line:
    return Line(f"converged, {of}", "all", f"{converged} of {n}", "", converged == n)


def _convergence(found: Result, of: str, converged: int, n: int) -> Iterator[Line]:
    yield _converged(of, converged, n)
    ours, parents = found["median_cycles"], found["parent_median_cycles"]
    if ours is not None and parents is not None:
        parent = f"parent {parents:g}"
        yield _line(f"median cycles, {of}", ours, parents + 2, "", parent, "the parent's + 2")
