"""``taufree export``: one model in one file, in the format that the file's name asks for."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from taufree.console import refuse_unwritable
from taufree.errors import UserError
from taufree.export.fun import energy, fun
from taufree.export.pt2 import pt2
from taufree.files import write_atomic
from taufree.model.storage import load_model

FORMATS = {".fun": fun, ".pt2": pt2}


def export(model: str, path: Path) -> dict[str, Any]:
    """Write a bundled model, or that of a path, to a ``.fun`` or ``.pt2`` file.

    Returns what the file says of itself, and its path and size.

    Raises
    ------
    UserError
        Another ending, a place that cannot be written, or no such model.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UserError(f"{path}: give a name that ends in {' or '.join(FORMATS)}.")
    refuse_unwritable(path, "FILE")
    functional = load_model(model)
    parent = functional.parent
    metadata = {
        "model": functional.name,
        "parent": parent.xc,
        "energy": energy(parent) if suffix == ".fun" else "exchange",
        "systems": "molecules",
        "units": "atomic",
        "elements": sorted(functional.elements),
        "taufree": version("taufree"),
    }
    content = FORMATS[suffix](functional, metadata)
    write_atomic(path.resolve(), content)
    return {**metadata, "file": path, "bytes": len(content)}
