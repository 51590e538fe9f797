"""``taufree data``: parent densities to train and test on.

Heavy imports stand inside the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taufree.console import AGAIN, Report, facts, reported, stderr
from taufree.options import Json, Scheduler, Workers

data = typer.Typer(help="Parent densities to train and test on.", no_args_is_help=True)


@data.command("build")
@reported(resume="Finished systems are kept; the same command goes on.")
def build_data(
    out: Annotated[Path, typer.Argument(help="Folder of the records.")] = Path("data"),
    kind: Annotated[
        list[str] | None, typer.Option(help="Only this kind (g2, atoms, ...); may be repeated.")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="Only this system; may be repeated.")
    ] = None,
    grid_level: Annotated[
        list[int] | None,
        typer.Option(min=0, max=9, help="Instead of the split's own grids; may be repeated."),
    ] = None,
    parent: Annotated[str, typer.Option(help="The functional: MS2 or R2SCAN.")] = "MS2",
    scheduler: Scheduler = None,
    workers: Workers = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try those again.")] = False,
    json: Json = None,
) -> Report:
    """Parent densities of many systems, several at once; goes on where it was interrupted."""
    from taufree.data.build import build, select
    from taufree.data.summary import summary, table

    entries = build(
        out,
        select(kind, name, parent),
        levels=grid_level,
        scheduler=scheduler,
        workers=workers,
        retry_failed=retry_failed,
        console=stderr,
    )
    result = {"folder": out, **summary(entries)}
    return Report(result, table(result), None if result["done"] else "every system failed.")


@data.command("pack")
@reported(resume=AGAIN)
def pack_data(
    package: Annotated[Path, typer.Argument(help="File to write.")],
    folder: Annotated[Path, typer.Argument(help="Folder of the records.")] = Path("data"),
    json: Json = None,
) -> Report:
    """A data set's orbitals in one small file, to move it to another machine."""
    from taufree.data.package import pack

    result = {"package": package, **pack(folder, package)}
    return Report(result, facts(result))


@data.command("unpack")
@reported(resume="Finished systems are kept; the same command goes on.")
def unpack_data(
    package: Annotated[Path, typer.Argument(help="File that `taufree data pack` wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder of the records.")] = Path("data"),
    scheduler: Scheduler = None,
    workers: Workers = None,
    json: Json = None,
) -> Report:
    """The records of a packed data set, without calculating anything self-consistently."""
    from taufree.data.package import unpack
    from taufree.data.summary import summary, table

    entries = unpack(package, out, scheduler=scheduler, workers=workers, console=stderr)
    result = {"folder": out, **summary(entries)}
    return Report(result, table(result))
