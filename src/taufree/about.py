"""What is installed here: versions, bundled models, threads and device."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import pyscf.lib
import torch
from rich.table import Table

from taufree.console import flat
from taufree.model.storage import bundled_models, read_card, weights_file

PACKAGES = ("taufree", "torch", "pyscf", "numpy", "ase", "lightning-fabric", "dask")


def about() -> dict[str, Any]:
    """Versions, threads, device, and the model card of every bundled model, by name."""
    cuda = torch.cuda.is_available()
    return {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "threads": {"torch": torch.get_num_threads(), "pyscf": pyscf.lib.num_threads()},
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "models": {name: read_card(weights_file(name)) for name in bundled_models()},
    }


def table(result: dict[str, Any]) -> Table:
    """Two columns: what, and which."""
    table = Table(show_header=False)
    for package, number in result["versions"].items():
        table.add_row(package, number)
    table.add_section()
    table.add_row("threads", ", ".join(f"{n} {lib}" for lib, n in result["threads"].items()))
    table.add_row("device", result["device"])
    table.add_section()
    for name, card in result["models"].items():
        metrics = (f"{what}: {value}" for what, value in flat(card.get("metrics", {})))
        table.add_row(f"model {name}", "\n".join(metrics))
    if not result["models"]:
        table.add_row("models", "none bundled")
    return table
