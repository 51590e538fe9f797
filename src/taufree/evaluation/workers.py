"""Many calculations with one functional, several at once on Dask workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from dask.system import CPU_COUNT
from distributed import as_completed
from pyscf import lib
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from taufree.data.build import dask_client
from taufree.functional import Functional

Run = dict[str, Any]
Name = TypeVar("Name")


def run_all(
    work: Callable[..., Run],
    calls: Mapping[Name, tuple[Any, ...]],
    functional: Functional,
    *,
    what: str,
    scheduler: str | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> Iterator[tuple[Name, Run]]:
    """Yield ``work(*arguments)`` of every call as it finishes; each on one thread.

    The first ones begin first. ``functional`` among the arguments is sent to each worker once. What
    breaks off is reported by `failed`; ``work`` must be a function of a module.
    """
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
    return work(*arguments)


def failed(error: BaseException) -> Run:
    """What is reported of a calculation that broke off."""
    lines = f"{type(error).__name__}: {error}".splitlines()
    return {"converged": False, "error": lines[0]}
