"""``taufree data build``: run the parent for many systems at once and keep what is finished."""

from __future__ import annotations

import fcntl
import logging
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import dask
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, as_completed
from pyscf import lib
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from taufree.data.generate import ParentRecord, calculate
from taufree.data.splits import Split, split_of
from taufree.data.store import (
    Entry,
    digest,
    file_of,
    is_intact,
    read_entry,
    read_manifest,
    write_manifest,
    write_record,
)
from taufree.data.systems import KINDS, System, registry
from taufree.errors import UserError
from taufree.physics.parents import parent_named

# Grids that integrate less well are good training data; the finer one shows what is left on it.
LEVELS: Mapping[Split, tuple[int, ...]] = {
    "train": (1, 2),
    "validation": (1, 2, 3),
    "test": (1, 2, 3),
}
CRYSTAL_LEVELS = (1,)  # of all splits: points are many, and repeat themselves by symmetry
CONNECT_SECONDS = 10
WORKER_ENVIRONMENT = {
    "distributed.nanny.pre-spawn-environ": {
        name: 1 for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
}
"""Dask's own, less a limit at which memory goes back to the system: arrays come and go, and asking
for their pages anew takes as long as all else."""

Make = Callable[[System, tuple[int, ...]], ParentRecord]


def select(
    kinds: Collection[str] | None = None,
    names: Collection[str] | None = None,
    parent: str = "MS2",
) -> list[System]:
    """Registered systems of some kinds and those of some names; by default all of them.

    They are to be calculated with ``parent``, the name of a whole functional.

    Raises
    ------
    UserError
        For an unknown kind, name or parent.
    """
    xc = parent_named(parent).xc
    systems = registry()
    for kind in kinds or ():
        if kind not in KINDS:
            raise UserError(f"unknown kind {kind!r}: choose from {', '.join(KINDS)}")
    for name in names or ():
        if name not in systems:
            raise UserError(f"unknown system {name!r}: see taufree.data.systems.registry()")
    return [
        replace(system, parent=xc)
        for system in systems.values()
        if not (kinds or names) or system.kind in (kinds or ()) or system.name in (names or ())
    ]


def build(
    out: Path,
    systems: Sequence[System],
    *,
    levels: Sequence[int] | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    retry_failed: bool = False,
    console: Console | None = None,
    make: Make = calculate,
) -> dict[str, Entry]:
    """Calculate every system on Dask workers; each is on disk as soon as it is finished.

    An interrupted build goes on where it stopped: a system whose file matches its checksum, and
    that was calculated with the same settings, is left alone. A system that fails is recorded with
    its reason and the others go on.

    Parameters
    ----------
    out
        Folder of the HDF5 files and of ``manifest.json``; all workers must see it.
    levels
        PySCF grid levels; None: those of `default_levels`.
    scheduler
        Address of a running Dask scheduler; None: a local cluster of ``workers`` processes
        (default: one a core) with one thread each.
    retry_failed
        Calculate again the systems recorded as failed.
    make
        What gives the record of a system on its grid levels; by default the parent's calculation.

    Returns
    -------
    dict
        The manifest: an `Entry` for every system calculated so far, by name.

    Raises
    ------
    UserError
        If the folder cannot be written, is in use by another build, or no scheduler answers.
    """
    out = out.absolute()
    with _locked(out):
        entries = read_manifest(out)
        tasks = []
        for system in sorted(systems, key=lambda s: s.cost, reverse=True):
            grids = tuple(levels or default_levels(system))
            key = digest(system, grids)
            entry = _known(out, entries.get(system.name), system, key)
            if entry is None or (retry_failed and entry.status == "failed"):
                tasks.append((system, grids, key))
            else:
                entries[system.name] = entry
        write_manifest(out, entries)
        for entry in _calculate_all(out, tasks, make, scheduler, workers, console):
            entries[entry.name] = entry
            write_manifest(out, entries)
    return entries


Task = tuple[System, tuple[int, ...], str]  # system, grid levels, digest


def default_levels(system: System) -> tuple[int, ...]:
    """Grid levels of a system's record: a crystal's, or those of a molecule's split."""
    return CRYSTAL_LEVELS if system.period else LEVELS[split_of(system.formula)]


def _known(out: Path, entry: Entry | None, system: System, key: str) -> Entry | None:
    """Manifest entry that still holds, or that of a file finished just before an interruption."""
    path = out / file_of(system)
    if entry is None and path.is_file():
        with suppress(UserError):  # of another schema: calculate it again
            entry = read_entry(path)
    if entry is None or entry.digest != key:
        return None
    return entry if entry.status == "failed" or is_intact(out, entry) else None


def _calculate_all(
    out: Path,
    tasks: Sequence[Task],
    make: Make,
    scheduler: str | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> Iterator[Entry]:
    """Yield the systems' entries as they finish, those of failed ones with a reason."""
    if not tasks:
        return
    console = console or Console(stderr=True)
    n_workers = min(workers or CPU_COUNT, len(tasks))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        dask_client(scheduler, n_workers) as client,
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
    ):
        bar = progress.add_task("parent densities", total=len(tasks))
        futures = {
            client.submit(_work, make, out, *task, pure=False, priority=-rank): task
            for rank, task in enumerate(tasks)
        }
        for future in as_completed(list(futures)):
            system, _, key = futures.pop(future)
            error = future.exception()
            if isinstance(error, UserError):  # no other system could be written either
                raise error
            entry = _failed(system, key, error) if error else future.result()
            if entry.status == "failed":
                progress.console.print(f"{entry.name}: {entry.reason}")
            yield entry
            progress.advance(bar)


def _work(make: Make, out: Path, system: System, levels: tuple[int, ...], key: str) -> Entry:
    lib.num_threads(1)  # parallel over systems: PySCF would take every core for each of them
    try:
        record = make(system, levels)
    except Exception as error:
        return _failed(system, key, error)
    return write_record(out, record, key)


def _failed(system: System, key: str, error: BaseException) -> Entry:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return Entry(system.name, system.formula, system.kind, key, "failed", reason)


@contextmanager
def dask_client(scheduler: str | None, workers: int) -> Iterator[Client]:
    """Client of a running scheduler, or of a local cluster of ``workers`` one-thread processes.

    Raises
    ------
    UserError
        If no scheduler answers at the address.
    """
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=CONNECT_SECONDS)
        except (OSError, ValueError) as error:
            raise UserError(f"no Dask scheduler answers at {scheduler}: {error}") from error
        with client:
            yield client
        return
    with dask.config.set(WORKER_ENVIRONMENT):
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",  # any free port: a second build warns otherwise
            memory_limit=0,  # PySCF keeps to its own max_memory; Dask would pause or kill it
            silence_logs=logging.CRITICAL,
        )
    with cluster, Client(cluster) as client:
        client.run(_leave_interrupt_to_parent)
        yield client


def _leave_interrupt_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the workers of a terminal, too


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep a second build out of the folder, and clear what a killed one left half-written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out} is in use by another build; wait for it to end") from None
        for temporary in out.glob(".*.tmp"):
            temporary.unlink(missing_ok=True)
        yield
