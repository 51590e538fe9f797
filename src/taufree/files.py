"""Files that are written wholly or not at all."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from taufree.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file wholly or not at all.

    Raises
    ------
    UserError
        If it cannot be written; no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        why = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise UserError(f"cannot write {path}: {why}; make room there and run it again") from error
    finally:
        temporary.unlink(missing_ok=True)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture whole or not at all; the format is the name's."""
    image = io.BytesIO()
    figure.savefig(image, format=path.suffix.removeprefix(".").lower(), dpi=150)
    write_atomic(path, image.getvalue())
