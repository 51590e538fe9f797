"""Figures of the report, each from the result of one evaluation."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from taufree.data.systems import registry
from taufree.evaluation.density import MODEL
from taufree.evaluation.thermochemistry import atomization, atoms_of
from taufree.hosts.single_point import KCAL_PER_HARTREE

METALS = frozenset("Li Be Na Mg Al K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga".split())
CRYSTALS = {"crystals": "crystals", "crystals-gth": "crystals, pseudopotentials"}
"""Kinds of the data that are crystals, and what they are called here."""
APART = {
    "dimers": "weakly bound", "pairs": "weakly bound", "small": "molecules, def2-SVP", **CRYSTALS
}  # fmt: skip
"""Kinds that say more of a system than its elements do."""
Result = Mapping[str, Any]


def elements_in(formula: str) -> set[str]:
    """Symbols of a formula."""
    return set(re.findall("[A-Z][a-z]?", formula))


def bonding_kind(formula: str, kind: str) -> str:
    """A coarse class of the bonds in a system: what its elements and its kind in the data say."""
    found = elements_in(formula)
    if apart := APART.get(kind):
        return apart
    if re.fullmatch(r"[A-Z][a-z]?([+-]\d*)?", formula):
        return "atoms and monatomic ions"
    if found <= METALS:
        return "metal–metal"
    if found & METALS:
        return "metal–non-metal"
    if any(atomic_numbers[symbol] > 10 for symbol in found):
        return "covalent, heavier elements"
    return "covalent, H to F"


def density_distribution(result: Result) -> Figure:
    """How many systems lie below an error, for every deorbitalizer."""
    figure, axes = _panels(2)
    for panel, (key, label) in zip(
        axes, (("de_x_mha", "|ΔE_x| (mHa)"), ("l1_mha", "∫|Δe_x| (mHa)")), strict=True
    ):
        for name in result["systems"][0]["errors"]:
            errors = sorted(abs(line["errors"][name][key]) for line in result["systems"])
            share = np.arange(1, len(errors) + 1) / len(errors)
            label_of, width = (result["model"], 2.5) if name == MODEL else (name, 1.2)
            panel.step(errors, share, where="post", label=label_of, lw=width)
        panel.set(xscale="log", xlabel=label, ylabel="share of systems below", ylim=(0, 1.02))
    axes[0].legend(fontsize="small")
    return figure


def density_groups(result: Result) -> Figure:
    """The model's error per electron: of molecules by element, of all by kind of bonding.

    Molecules in the small basis err by the basis, not by the element: they stand apart.
    """
    by_element: dict[str, list[float]] = defaultdict(list)
    by_bonding: dict[str, list[float]] = defaultdict(list)
    for line in result["systems"]:
        error = line["errors"][MODEL]["exc_mha"]
        if line["kind"] not in ("small", *CRYSTALS):
            for symbol in elements_in(line["formula"]):
                by_element[symbol].append(error)
        by_bonding[bonding_kind(line["formula"], line["kind"])].append(error)
    order = sorted(by_element, key=atomic_numbers.__getitem__)
    figure, axes = _panels(2)
    _bars(
        axes[0],
        {symbol: by_element[symbol] for symbol in order},
        "molecules and atoms with the element",
    )
    _bars(axes[1], dict(sorted(by_bonding.items())), "bonding")
    return figure


def _bars(panel: Axes, groups: Mapping[str, Sequence[float]], title: str) -> None:
    means = [float(np.mean(values)) for values in groups.values()]
    panel.barh(range(len(groups)), means, color="C0", alpha=0.6)
    for row, values in enumerate(groups.values()):
        panel.plot(values, [row] * len(values), "k.", ms=3)
    panel.set_yticks(range(len(groups)), [f"{k} ({len(v)})" for k, v in groups.items()])
    panel.invert_yaxis()
    panel.set(xlabel="∫|Δe_x| per electron (mHa)", title=title)


def scf_parity(result: Result) -> Figure:
    """Atomization energies of the model against the parent's, and total energies' differences."""
    energies = {
        which: {line["name"]: line[which].get("energy_hartree") for line in _all(result)}
        for which in ("deorbitalized", "parent")
    }
    pairs = []
    for line in result["systems"]:
        system = registry().get(line["name"])
        atoms = atoms_of(system) if system else {}
        if not atoms or line["atomization_kcal"] is None:
            continue
        free = {symbol: energies["parent"][symbol] for symbol in atoms}
        parent = KCAL_PER_HARTREE * atomization(energies["parent"][line["name"]], atoms, free)
        pairs.append((parent, parent + line["atomization_kcal"]))
    figure, axes = _panels(2)
    parity(axes[0], pairs, "atomization energy (kcal/mol)", result)
    errors = [
        line["de_total_mha"] for line in result["systems"] if line["de_total_mha"] is not None
    ]
    axes[1].hist(errors, bins=min(30, max(5, len(errors))), color="C0")
    axes[1].set(xlabel="ΔE_total (mHa)", ylabel="systems")
    return figure


def _all(result: Result) -> list[dict[str, Any]]:
    return [*result["systems"], *result["atoms"]]


def parity(panel: Axes, pairs: Iterable[tuple[float, float]], label: str, result: Result) -> None:
    """The model's values against the parent's, and the line they should lie on."""
    values = np.array(list(pairs)).reshape(-1, 2)
    if len(values):
        ends = [values.min(), values.max()]
        panel.plot(ends, ends, color="0.7", zorder=0)
        panel.plot(*values.T, "o", ms=4, color="C0")
    panel.set(xlabel=f"{label}, {result['parent']}", ylabel=f"{label}, {result['model']}")


def scf_convergence(result: Result) -> Figure | None:
    """|E − E_final| of every system in each cycle, where the calculations kept it."""
    figure, axes = _panels(2)
    axes[1].sharex(axes[0])
    axes[1].sharey(axes[0])
    drawn = 0
    for panel, which in zip(axes, ("deorbitalized", "parent"), strict=True):
        for line in result["systems"]:
            steps = np.array(line[which].get("energies_hartree", []))
            if len(steps) > 1:
                drawn += 1
                off = np.maximum(np.abs(steps[:-1] - steps[-1]), 1e-12)
                panel.semilogy(np.arange(1, len(steps)), off, lw=0.8, alpha=0.6)
        panel.set(xlabel="cycle", ylabel="|E − E_final| (hartree)", title=which)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure if drawn else None


def reaction_parity(result: Result) -> Figure:
    """Barrier heights and interaction energies of the model against the parent's."""
    figure, axes = _panels(len(result["summary"]))
    for panel, name in zip(axes, result["summary"], strict=True):
        pairs = [
            (line["parent_kcal"], line["energy_kcal"])
            for line in result["reactions"]
            if line["set"] == name and line["error_kcal"] is not None
        ]
        parity(panel, pairs, f"{name} (kcal/mol)", result)
    return figure


def _panels(n: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(5.5 * n, 4), layout="constrained")
    axes = figure.subplots(1, n, squeeze=False)[0]
    for panel in axes:
        panel.grid(alpha=0.3)
    return figure, axes
