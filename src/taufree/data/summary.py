"""A data set at a glance: how many systems of each kind are finished, and what failed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ase.data import atomic_numbers
from rich.markup import escape
from rich.table import Table

from taufree.data.splits import Split, split_of
from taufree.data.store import Entry, manifest_checksum

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def summary(entries: Mapping[str, Entry]) -> dict[str, Any]:
    """Count the finished systems by kind and split; name the failed ones with their reasons."""
    done = [entry for entry in entries.values() if entry.status == "done"]
    counts = Counter((entry.kind, split_of(entry.formula)) for entry in done)
    kinds = dict.fromkeys(entry.kind for entry in entries.values())
    return {
        "checksum": manifest_checksum(dict(entries)),
        "done": len(done),
        "kinds": {kind: {split: counts[kind, split] for split in SPLITS} for kind in kinds},
        "failed": {e.name: e.reason for e in entries.values() if e.status == "failed"},
    }


def elements(entries: Mapping[str, Entry], split: Split, kind: str | None = None) -> list[str]:
    """Symbols of the elements in the finished systems of a split, by atomic number.

    With ``kind`` in those of that kind only.
    """
    done = (e for e in entries.values() if e.status == "done")
    formulas = (e.formula for e in done if kind in (None, e.kind))
    found = {s for f in formulas if split_of(f) == split for s in re.findall("[A-Z][a-z]?", f)}
    return sorted(found, key=atomic_numbers.__getitem__)


def table(result: dict[str, Any]) -> Table:
    """One row a kind, one column a split; below, what failed (the reasons are in the result)."""
    table = Table("kind", title=f"{result['done']} parent densities", title_justify="left")
    for split in SPLITS:
        table.add_column(split, justify="right")
    for kind, counts in result["kinds"].items():
        table.add_row(kind, *(str(counts[split]) for split in SPLITS))
    checksum = f"checksum {result['checksum'][:12]}"
    failed = f"failed: {', '.join(result['failed'])}" if result["failed"] else "none failed"
    table.caption = escape(f"{failed}; {checksum}")
    return table
