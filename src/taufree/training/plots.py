"""Learning curves."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure


def plot_learning_curve(log: Path, path: Path) -> None:
    """Training loss and validation errors against steps, from a run's ``log.jsonl``."""
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [entry["step"] for entry in entries]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for key, label in (("l1", "∫|Δe_x|"), ("energy", "|ΔE_x|")):
        left.semilogy(steps, [1e3 * abs(e["train"][key]) for e in entries], label=label)
    left.set(xlabel="step", ylabel="training loss (mHa per electron)")
    for key, label in (("l1_mha", "∫|Δe_x|"), ("energy_error_mha", "|ΔE_x|")):
        right.semilogy(steps, [e["validation"][key] for e in entries], label=label)
    right.set(xlabel="step", ylabel="validation error (mHa)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path)
