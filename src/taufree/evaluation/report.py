"""``taufree report``: every result of a folder on one page that needs no network."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from taufree.console import facts, refuse_unwritable
from taufree.errors import UserError
from taufree.evaluation import (
    cells,
    density,
    geometry,
    invariance,
    limits,
    plots,
    reactions,
    report_figures,
    scf,
    side_by_side,
    solids,
    targets,
)
from taufree.evaluation.density import MODEL
from taufree.evaluation.report_figures import CRYSTALS
from taufree.evaluation.speed import experts, peers, scaling, train, xc
from taufree.evaluation.speed import scf as speed_scf
from taufree.files import write_atomic
from taufree.training.plots import learning_curve

WORST = 10
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em;
  color: #222; }
h1, h2 { font-weight: 600; } h2 { border-bottom: 1px solid #ccc; margin-top: 2.5em; }
nav a { margin-right: 1em; } figure { margin: 1em 0; } figure svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; display: block;
  overflow-x: auto; }
caption { text-align: left; font-weight: 600; } th, td { padding: 2px 9px; text-align: left; }
td + td, th + th { text-align: right; } th { border-bottom: 1px solid #888; white-space: pre; }
tr.section td { border-bottom: 1px solid #ccc; } p.note { color: #555; white-space: pre-line; }
td.met { color: #176; } td.missed { color: #b20; font-weight: 600; }
"""

VERDICTS = {word: f' class="{word}"' for word in ("met", "missed")}

Result = dict[str, Any]
Part = Table | Figure | None


def write_report(folder: Path, out: Path, logs: Sequence[Path] = ()) -> dict[str, Any]:
    """Read the results (``--json`` files) of a folder, draw them, write one HTML file.

    Parameters
    ----------
    folder : Path
        JSON files of ``taufree evaluate``; other commands' are listed in short.
    out : Path
        The page: tables, figures as SVG, nothing to fetch.
    logs : optional
        ``log.jsonl`` of training runs, for their learning curves.

    Raises
    ------
    UserError
        No results in the folder, or a file that is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give the one that holds the --json files.")
    refuse_unwritable(out, "--out")
    results = [
        (path, kind_of(result), result)
        for path in sorted(folder.glob("*.json"))
        for result in [_read(path)]
    ]
    order = [*KINDS, OTHER]
    results.sort(key=lambda x: (order.index(x[1]), x[2].get("potential") == "gks"))
    if not results:
        raise UserError(f"{folder} holds no .json file: run taufree evaluate with --json there.")
    sections, aims = [], []
    for path, kind, result in results:
        try:
            title, parts = _section(path.stem, kind, result)
            sections.append((path.stem, title, "".join(map(_html, parts))))
            if not result.get("comparator"):
                rivals = [r for _, of, r in results if of == kind and r.get("comparator")]
                found = targets.lines(kind, result, rivals)
                aims += [(line, result["model"], path.name) for line in found]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"{path} was made by another version of taufree, or is no result: evaluate anew."
            ) from error
    for log in logs:
        try:
            entries = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
        except ValueError as error:
            raise UserError(f"{log} is no log.jsonl of taufree train.") from error
        name = log.parent.name if log.stem == "log" else log.stem
        curve = learning_curve(entries, name)
        sections.append((f"log-{name}", f"Learning curve: {name}", _html(curve)))
    tables = side_by_side.tables([(kind, result) for _, kind, result in results])
    if beside := "".join(map(_html, tables)):
        sections.insert(0, ("side-by-side", "Self-consistent results side by side", beside))
    if aims:
        sections.insert(0, ("targets", "Targets", _html(targets.table(aims))))
    links = "".join(f'<a href="#{escape(i)}">{escape(title)}</a>' for i, title, _ in sections)
    body = "".join(
        f'<section id="{escape(i)}"><h2>{escape(title)}</h2>{content}</section>'
        for i, title, content in sections
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>taufree report</title>'
        f"<style>{STYLE}</style></head><body><h1>taufree report</h1><nav>{links}</nav>{body}"
        "</body></html>"
    )
    write_atomic(out.resolve(), page.encode())
    return {
        "page": out,
        "results": [path.name for path, *_ in results],
        "learning_curves": len(logs),
        "bytes": len(page),
    }


def _read(path: Path) -> Result:
    try:
        result = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: take it out of the folder.") from error
    if not isinstance(result, dict):
        raise UserError(f"{path} is no result of taufree: take it out of the folder.")
    return result


def kind_of(result: Result) -> str:
    """The command that made a result: as it says itself or, if it is older, by keys of its own."""
    if "evaluation" in result:
        return result["evaluation"] if result["evaluation"] in KINDS else OTHER
    return next((name for name, kind in KINDS.items() if kind.keys <= result.keys()), OTHER)


def _section(name: str, kind: str, result: Result) -> tuple[str, list[Part]]:
    """Title and content of one result."""
    if kind in KINDS:
        return f"{KINDS[kind].title} ({name})", KINDS[kind].parts(result)
    plain = {k: v for k, v in result.items() if not isinstance(v, list)}
    return name, [facts(result.get("summary") or plain)]


def _density(result: Result) -> list[Part]:
    parts: list[Part] = [
        report_figures.density_distribution(result),
        report_figures.density_groups(result),
    ]
    for crystals, title in ((False, "molecules and atoms"), (True, "crystals, a cell")):
        lines = [x for x in result["systems"] if (x["kind"] in CRYSTALS) == crystals]
        if lines:
            parts.append(_worst_densities(lines, f"The worst {WORST}: {title}"))
    return [*parts, density.table(result)]


def _worst_densities(lines: list[Result], title: str) -> Table:
    def size(line: Result) -> float:
        return abs(float(line["errors"][MODEL]["de_x_mha"]))

    worst = Table("system", "kind", "ΔE_x\nmHa", "∫|Δe_x|\nmHa", title=title)
    for line in sorted(lines, key=size, reverse=True)[:WORST]:
        found = line["errors"][MODEL]
        cells = (f"{found['de_x_mha']:+.2f}", f"{found['l1_mha']:.2f}")
        worst.add_row(line["name"], line["kind"], *cells)
    return worst


def _scf(result: Result) -> list[Part]:
    known = [line for line in result["systems"] if line["de_total_mha"] is not None]
    worst = Table("system", "ΔE_total\nmHa", "cycles", "parent's", title=f"The worst {WORST}")
    for line in sorted(known, key=lambda x: abs(x["de_total_mha"]), reverse=True)[:WORST]:
        cycles = (str(line[which]["cycles"]) for which in ("deorbitalized", "parent"))
        worst.add_row(line["name"], f"{line['de_total_mha']:+.2f}", *cycles)
    parity = report_figures.scf_parity(result)
    return [parity, report_figures.scf_convergence(result), worst, scf.table(result)]


def _reactions(result: Result) -> list[Part]:
    return [report_figures.reaction_parity(result), reactions.table(result)]


def _solids(result: Result) -> list[Part]:
    return [plots.solids_figure(result), solids.table(result)]


def _speed(result: Result) -> list[Part]:
    benches: dict[str, Any] = {
        "xc": xc, "crystals": xc, "scf": speed_scf, "scaling": scaling, "train": train,
        "peers": peers, "experts": experts,
    }  # fmt: skip
    bench = benches[result["benchmark"]]
    figure = None if bench is experts else bench.plot(result)
    return [figure, bench.table(result)]


class Kind(NamedTuple):
    """Results of one command: its section, and keys that together only they have."""

    title: str
    keys: set[str]
    parts: Callable[[Result], list[Part]]


KINDS = {
    "density": Kind("Errors at the parent's densities", {"routing", "means"}, _density),
    "scf": Kind("Self-consistent results", {"atoms", "systems"}, _scf),
    "reactions": Kind("Barriers and interaction energies", {"reactions", "summary"}, _reactions),
    "solids": Kind("Crystals", {"crystals", "summary"}, _solids),
    "geometry": Kind(
        "Geometries and vibrations", {"molecules", "summary"}, lambda r: [geometry.table(r)]
    ),
    "cells": Kind("Relaxed cells", {"crystals", "kpts"}, lambda r: [cells.table(r)]),
    "limits": Kind("Exact conditions", {"uniform_scaling", "slabs"}, lambda r: [limits.table(r)]),
    "invariance": Kind(
        "What is lost without invariance",
        {"model", "grid_level", "systems"},
        lambda r: [invariance.table(r)],
    ),
    "speed": Kind("Speed", {"benchmark", "conditions"}, _speed),
}
"""In the order of their sections, and of the tests of `kind_of`."""
OTHER = "other"


def _html(part: Part) -> str:
    if part is None:
        return ""
    return _figure(part) if isinstance(part, Figure) else _table(part)


def _figure(figure: Figure) -> str:
    image = io.StringIO()
    figure.savefig(image, format="svg")
    svg = image.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    return f"<figure>{svg[svg.index('<svg') :]}</figure>"


def _table(table: Table) -> str:
    """A table of the command line as HTML."""
    head = "".join(f"<th>{_text(c.header)}</th>" for c in table.columns)
    rows = "".join(_rows(table))
    title = f"<caption>{_text(table.title)}</caption>" if table.title else ""
    note = f'<p class="note">{_text(table.caption)}</p>' if table.caption else ""
    top = f"<thead><tr>{head}</tr></thead>" if table.show_header else ""
    return f"<table>{title}{top}<tbody>{rows}</tbody></table>{note}"


def _rows(table: Table) -> Iterator[str]:
    cells = zip(*(column.cells for column in table.columns), strict=True)
    for row, values in zip(table.rows, cells, strict=True):
        kind = ' class="section"' if row.end_section else ""
        texts = (_text(value) for value in values)
        content = "".join(f"<td{VERDICTS.get(text, '')}>{text}</td>" for text in texts)
        yield f"<tr{kind}>{content}</tr>"


def _text(content: Any) -> str:
    plain = Text.from_markup(content) if isinstance(content, str) else content
    return escape(plain.plain if isinstance(plain, Text) else str(plain))
