"""Models and comparators as rows of one table: means of what each was found to do by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from taufree.console import number
from taufree.evaluation.solids import COLUMNS

Result = Mapping[str, Any]
SCF = {
    "mean_de_total_mha": ("ΔE_total\nmHa", ".1f"),
    "mean_atomization_kcal": ("ΔE_at\nkcal/mol", ".2f"),
    "max_atomization_kcal": ("largest\nkcal/mol", ".1f"),
    "mean_d_gap_ev": ("Δgap\neV", ".2f"),
    "mean_d_dipole_debye": ("Δμ\ndebye", ".3f"),
}
REACTIONS = {
    "mean_error_kcal": ("mean |Δ|\nkcal/mol", ".2f"),
    "max_error_kcal": ("largest |Δ|\nkcal/mol", ".1f"),
}
SOLIDS = {
    f"mean_{key}": (f"{name}\n{unit}", form.lstrip("+"))
    for key, (name, unit, form) in COLUMNS.items()
}


def tables(results: Sequence[tuple[str, Result]]) -> Iterator[Table]:
    """One table for each kind of self-consistent result, (kind, result), that there are several of.

    Differences are to the parent, means of absolute values where both converged.
    """
    for kind, title, columns in (
        ("scf", "Molecules and crystals at given geometries", SCF),
        ("reactions", "Barriers and interactions", REACTIONS),
        ("solids", "Energy-volume curves of crystals", SOLIDS),
    ):
        found = [result for of, result in results if of == kind]
        found.sort(key=lambda result: bool(result.get("comparator")))
        if len(found) > 1:
            yield _table(title, columns, [row for result in found for row in rows(kind, result)])


def rows(kind: str, result: Result) -> Iterator[tuple[str, str, Result]]:
    """Of each set of systems in a result: the model's name, what was calculated, the summary."""
    name, found = Path(result["model"]).name, result["summary"]
    if kind == "reactions":
        for collection, of in found.items():
            if of["n"]:
                what = f"{of['n']} of {collection}, {result['basis']}, level {result['grid_level']}"
                yield name, what, of
    elif kind == "solids":
        yield name, f"{found['n_crystals']} crystals", found
    else:
        name += "" if result["potential"] == "ks" else f" ({result['potential']})"
        kinds = sorted({line["kind"] for line in result["systems"]})
        bases = sorted({line["basis"] for line in result["systems"]})
        what = f"{found['n_systems']} of {', '.join(kinds)}, {', '.join(bases)}, "
        what += f"level {result['grid_level']}"
        yield name, what, found


def _table(
    title: str, columns: Mapping[str, tuple[str, str]], rows: Sequence[tuple[str, str, Result]]
) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("model", "of"):
        table.add_column(column)
    for name, _ in columns.values():
        table.add_column(name, justify="right")
    for name in ("converged", "cycles", "parent's"):
        table.add_column(name, justify="right")
    for name, what, found in sorted(rows, key=lambda row: row[1]):
        n = found["n_points"] if "n_points" in found else found["n_systems"]
        share = found["converged"]
        converged = round(share * n) if isinstance(share, float) else share
        table.add_row(
            escape(name),
            what,
            *(number(found.get(key), form) for key, (_, form) in columns.items()),
            f"{converged} of {n}",
            *(number(found[key], "g") for key in ("median_cycles", "parent_median_cycles")),
        )
    return table
