"""How every command ends: a table, a JSON file, or one line that says what went wrong."""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from taufree.errors import UserError
from taufree.files import write_atomic

INTERRUPTED = 130  # 128 + SIGINT, as shells do
stderr = Console(stderr=True, highlight=False, soft_wrap=True)
"""For progress and messages; standard output is for tables."""
AGAIN = "Nothing was written; the same command starts again."
"""What a command that keeps nothing says when it is interrupted."""


@dataclass(frozen=True)
class Report:
    """What a command hands back: a JSON-able result, its table, and why it failed all the same."""

    result: dict[str, Any]
    table: Table
    failure: str | None = None


def reported(resume: str) -> Callable[[Callable[..., Report]], Callable[..., None]]:
    """Turn a function that returns a `Report` into a command that ends as every command does.

    The table goes to standard output and the result to the file of the ``json`` option. Bad input,
    trouble with files and Ctrl-C give one line on standard error and a non-zero exit status.

    Parameters
    ----------
    resume : str
        What Ctrl-C tells the user about what is kept and how to go on.
    """

    def decorate(command: Callable[..., Report]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*args: Any, json: Path | None = None, **options: Any) -> None:
            try:
                if json:
                    refuse_unwritable(json)
                with warnings.catch_warnings():
                    warnings.showwarning = _show_warning
                    report = command(*args, json=json, **options)
                if json:
                    write_json(json, report.result)
            except KeyboardInterrupt:
                fail(f"interrupted. {resume}", INTERRUPTED)
            except UserError as error:
                fail(str(error))
            except OSError as error:
                fail(_describe(error))
            except MemoryError:
                fail("out of memory: use a smaller --basis or --grid-level, or free memory.")
            Console(width=None if Console().is_terminal else 120).print(report.table)
            if report.failure:
                fail(report.failure)

        return run

    return decorate


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """One line on standard error, without the place in the code that Python adds."""
    stderr.print(f"taufree: warning: {' '.join(str(message).split())}", markup=False)


def facts(result: Mapping[str, Any]) -> Table:
    """Two columns: what, and how much; for results that need no table of their own."""
    table = Table(show_header=False)
    for name, value in flat(result):
        table.add_row(escape(name), escape(value))
    return table


def number(value: float | None, form: str) -> str:
    """A table's cell: a dash where there is no value."""
    return "–" if value is None else format(value, form)


def flat(result: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Name and value of every entry, in words; nested entries by all their names."""
    for key, value in result.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from flat(value, f"{name} ")
        else:
            yield name, f"{value:.5g}" if isinstance(value, float) else str(value)


def fail(message: str, status: int = 1) -> NoReturn:
    """Print one line on standard error and exit."""
    stderr.print(f"taufree: {' '.join(message.split())}", markup=False)
    raise typer.Exit(status)


def _describe(error: OSError) -> str:
    what = os.strerror(error.errno) if error.errno else str(error)
    where = f"{error.filename}: " if error.filename else ""
    hint = "; free some space and run the command again" if error.errno == errno.ENOSPC else ""
    return f"{where}{what}{hint}."


def refuse_unwritable(path: Path, option: str = "--json") -> None:
    """Say before a long calculation, not after it, that its result cannot be written.

    Raises
    ------
    UserError
        The path is no regular file, or its folder is missing or write-protected.
    """
    if (path.exists() and not path.is_file()) or path.is_relative_to("/dev"):
        raise UserError(f"{option} {path} is a folder or a device: give the path of a file.")
    if not path.resolve().parent.is_dir():
        raise UserError(f"{option} {path}: the folder {path.parent} is missing: make it first.")
    if not os.access(path if path.exists() else path.resolve().parent, os.W_OK):
        raise UserError(f"{option} {path} cannot be written: choose a place that is yours.")


PICTURES = (".png", ".svg", ".pdf")


def refuse_picture(path: Path | None, option: str = "--plot") -> None:
    """As `refuse_unwritable`, for a picture that may be wanted; its name says the format.

    Raises
    ------
    UserError
        Another format, or a place that cannot be written.
    """
    if path is None:
        return
    if path.suffix.lower() not in PICTURES:
        raise UserError(f"{option} {path}: give a name that ends in {', '.join(PICTURES)}.")
    refuse_unwritable(path, option)


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Write the whole file or, when that fails, nothing; NaN and infinity become null."""
    text = json.dumps(_plain(result), indent=2, allow_nan=False) + "\n"
    write_atomic(path.resolve(), text.encode())


def kept(file: Path | None, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``results`` of an earlier run with the same ``settings``, interrupted or finished."""
    if file is None or not file.exists():
        return []
    try:
        before = json.loads(file.read_text("utf-8"))
        return list(before["results"]) if before["settings"] == _plain(settings) else []
    except (ValueError, KeyError, TypeError):
        return []


def _plain(value: Any) -> Any:
    """Numbers, strings, lists and dictionaries only: JSON knows neither NumPy nor NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy and PyTorch
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
