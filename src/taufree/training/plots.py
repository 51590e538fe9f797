"""Learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

UNITS = {
    "train": "10⁻³ of each loss (l1, energy: mHa per electron)",
    "validation": "mean error (mHa)",
}


def learning_curve(entries: Sequence[Mapping[str, Any]], name: str) -> Figure:
    """Training and, if there are any, validation errors against steps, from ``log.jsonl``."""
    parts = [part for part in UNITS if any(entry.get(part) for entry in entries)]
    figure = Figure(figsize=(5.5 * max(1, len(parts)), 4), layout="constrained")
    panels = figure.subplots(1, max(1, len(parts)), squeeze=False)[0]
    steps = [entry["step"] for entry in entries]
    for panel, part in zip(panels, parts, strict=False):
        known = [entry.get(part, {}) for entry in entries]
        scale = 1e3 if part == "train" else 1.0
        for key in dict.fromkeys(key for values in known for key in values):
            values = [abs(scale * v.get(key, math.nan)) for v in known]
            panel.semilogy(steps, values, label=key.removesuffix("_mha").replace("_", " "))
        panel.set(xlabel="step", ylabel=UNITS[part], title=f"{name}, {part}")
        panel.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
        panel.grid(alpha=0.3)
    return figure
