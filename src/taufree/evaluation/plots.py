"""Pictures of evaluations: what every single system is like, not the mean alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase.units import Bohr, Hartree
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from taufree.evaluation.density import MODEL
from taufree.evaluation.equation_of_state import EOS
from taufree.files import save_figure

ROW = 0.2  # inch
BEST_CLASSIC = "PCopt"


def plot_density(result: dict[str, Any], path: Path) -> None:
    """|ΔE_x| and ∫|Δe_x| of each system: the model, PCopt, and the other deorbitalizers in gray."""
    lines = sorted(result["systems"], key=lambda line: line["errors"][MODEL]["l1_mha"])
    figure, panels = _panels(2, len(lines), f"errors at {result['parent']} densities")
    quantities = {"de_x_mha": r"$|ΔE_x|$ (mHa)", "l1_mha": r"$\int |Δe_x|$ (mHa)"}
    for panel, (quantity, label) in zip(panels, quantities.items(), strict=True):
        for row, line in enumerate(lines):
            errors = {name: abs(found[quantity]) for name, found in line["errors"].items()}
            model, best = errors.pop(MODEL), errors.pop(BEST_CLASSIC)
            panel.plot(list(errors.values()), [row] * len(errors), ".", color="0.7", label="others")
            panel.plot(best, row, "o", color="C1", label=BEST_CLASSIC)
            panel.plot(model, row, "D", color="C0", label=MODEL)
        panel.set(xscale="log", xlabel=label)
    _finish(figure, panels, lines, path)


def plot_scf(result: dict[str, Any], path: Path) -> None:
    """Each system's total energy and atomization energy beside the parent's, and both SCF's cycles.

    What did not converge has a red cross in place of its bars.
    """
    lines = sorted(result["systems"], key=lambda line: abs(line["de_total_mha"] or 0))
    figure, panels = _panels(3, len(lines), f"self-consistent, beside {result['parent']}")
    labels = r"$ΔE_\mathrm{total}$ (mHa)", "error of atomization energy (kcal/mol)", "SCF cycles"
    for panel, label in zip(panels, labels, strict=True):
        panel.set(xlabel=label)
    panels[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    for row, line in enumerate(lines):
        panels[0].barh(row, line["de_total_mha"] or 0, color="C0")
        panels[1].barh(row, line["atomization_kcal"] or 0, color="C0")
        if line["de_total_mha"] is None:
            panels[0].plot(0, row, "xr", label="not converged", clip_on=False)
        ring: dict[str, Any] = {"ms": 8, "mfc": "none", "mec": "C1"}
        if "cycles" in line["parent"]:
            panels[2].plot(line["parent"]["cycles"], row, "o", label="parent", **ring)
        if "cycles" in line["deorbitalized"]:
            cycles = line["deorbitalized"]["cycles"]
            panels[2].plot(cycles, row, "D", ms=4, color="C0", label="deorbitalized")
    _finish(figure, panels, lines, path)


def plot_solids(result: dict[str, Any], path: Path) -> None:
    """Write `solids_figure`."""
    save_figure(solids_figure(result), path)


def solids_figure(result: dict[str, Any]) -> Figure:
    """Energy-volume curves of each crystal, either functional's above its own minimum."""
    lines = result["crystals"]
    n_columns = min(4, len(lines))
    n_rows = -(-len(lines) // n_columns)
    figure = Figure(figsize=(3 * n_columns, 2.4 * n_rows + 1), layout="constrained")
    panels = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    styles = {"parent": ("C1", "o", "-"), "deorbitalized": ("C0", "D", "--")}
    for panel, line in zip(panels, lines, strict=False):
        unit = 1000 * Hartree / line["n_atoms"]
        volumes = np.array(line["volumes"]) * Bohr**3 / line["n_atoms"]
        for which, (color, marker, dashes) in styles.items():
            if line[which]["eos"] is None:
                continue
            eos = EOS(**line[which]["eos"])
            energies = [run["energy_hartree"] - eos.energy for run in line[which]["points"]]
            fine = np.linspace(line["volumes"][0], line["volumes"][-1], 101)
            name = f"parent {result['parent']}" if which == "parent" else which
            label = {"label": name, "color": color, "marker": marker}
            panel.plot(volumes, unit * np.array(energies), ls="", mfc="none", **label)
            panel.plot(fine * Bohr**3 / line["n_atoms"], unit * eos(fine), dashes, color=color)
        distance = line["delta_mev"]
        shown = "not compared" if distance is None else f"Δ = {distance:.2f} meV/atom"
        panel.set_title(f"{line['name']}\n{shown}", fontsize="small")
        panel.grid(alpha=0.3)
    for panel in panels[len(lines) :]:
        panel.set_visible(False)
    figure.supxlabel("volume (Å³/atom)", fontsize="medium")
    figure.supylabel("energy above the minimum (meV/atom)", fontsize="medium")
    _legend(figure, panels, "outside upper center")
    return figure


def _panels(n_panels: int, n_rows: int, title: str) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(3.5 * n_panels + 1, 1.5 + ROW * n_rows), layout="constrained")
    figure.suptitle(title)
    return figure, figure.subplots(1, n_panels, sharey=True, squeeze=False)[0]


def _finish(
    figure: Figure, panels: Sequence[Axes], lines: Sequence[dict[str, Any]], path: Path
) -> None:
    panels[0].set_yticks(range(len(lines)), [line["name"] for line in lines])
    panels[0].set_ylim(-1, len(lines))
    for panel in panels:
        panel.grid(alpha=0.3)
    _legend(figure, panels)
    save_figure(figure, path)


def _legend(
    figure: Figure,
    panels: Sequence[Axes],
    where: Literal["outside right upper", "outside upper center"] = "outside right upper",
) -> None:
    labelled: dict[str, Artist] = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        labelled |= dict(zip(labels, handles, strict=True))
    figure.legend(labelled.values(), labelled.keys(), loc=where, fontsize="small")
