"""Many calculations with one functional, several at once on Dask workers, each kept when done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from dask.system import CPU_COUNT
from distributed import as_completed
from pyscf import lib
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from taufree.comparators.self_consistent import Rival
from taufree.data.build import dask_client
from taufree.files import write_atomic
from taufree.functional import Functional

Run = dict[str, Any]
Name = TypeVar("Name")


def run_all(
    work: Callable[..., Run],
    calls: Mapping[Name, tuple[Any, ...]],
    functional: Functional | Rival,
    *,
    what: str,
    files: Mapping[Name, Path] | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> Iterator[tuple[Name, Run]]:
    """Yield ``work(*arguments)`` of every call as it finishes; each on one thread.

    The first ones begin first. ``functional`` among the arguments is sent to each worker once. What
    breaks off is reported by `failed`; ``work`` must be a function of a module. A result that its
    one of ``files`` holds is not calculated again; there every other is written at once, but not
    what broke off.
    """
    files = files or {}
    missing = {}
    for name, arguments in calls.items():
        if (kept := _kept(files.get(name))) is None:
            missing[name] = arguments
        else:
            yield name, kept
    for name, run in _on_workers(work, missing, functional, what, scheduler, workers, console):
        if name in files and "error" not in run:
            files[name].parent.mkdir(parents=True, exist_ok=True)
            write_atomic(files[name], json.dumps(run, indent=1).encode())
        yield name, run


def _on_workers(
    work: Callable[..., Run],
    calls: Mapping[Name, tuple[Any, ...]],
    functional: Functional | Rival,
    what: str,
    scheduler: str | None,
    workers: int | None,
    console: Console | None,
) -> Iterator[tuple[Name, Run]]:
    if not calls:
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        dask_client(scheduler, min(workers or CPU_COUNT, len(calls))) as client,
        Progress(
            *columns, TimeElapsedColumn(), console=console, disable=console is None
        ) as progress,
    ):
        bar = progress.add_task(what, total=len(calls))
        [shared] = client.scatter([functional], broadcast=True)
        futures = {
            client.submit(
                _on_one_thread, work, *(shared if x is functional else x for x in arguments),
                pure=False, priority=-rank,
            ): name
            for rank, (name, arguments) in enumerate(calls.items())
        }  # fmt: skip
        for future in as_completed(list(futures)):
            error = future.exception()
            yield futures.pop(future), failed(error) if error else future.result()
            progress.advance(bar)


def _on_one_thread(work: Callable[..., Run], *arguments: Any) -> Run:
    lib.num_threads(1)
    torch.set_num_threads(1)
    try:
        return work(*arguments)
    except Exception as error:  # one system's trouble is not the others'
        return failed(error)


def _kept(file: Path | None) -> Run | None:
    if file is not None and file.is_file():
        with suppress(ValueError):  # damaged: calculate it again
            return json.loads(file.read_text("utf-8"))
    return None


def failed(error: BaseException) -> Run:
    """What is reported of a calculation that broke off."""
    lines = f"{type(error).__name__}: {error}".splitlines()
    return {"converged": False, "error": lines[0]}
