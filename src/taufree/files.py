"""Files that are written wholly or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from taufree.errors import UserError


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
