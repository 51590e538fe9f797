"""``taufree bench``: the options of each benchmark. Heavy imports stand inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from taufree.console import AGAIN, Report, refuse_picture, reported, stderr
from taufree.errors import UserError
from taufree.files import save_figure
from taufree.options import GridLevel, Json, MaxMemory, Model, Plot

bench = typer.Typer(help="Speed beside PBE, the parent and other networks.", no_args_is_help=True)

Molecule = Annotated[
    Path | None, typer.Argument(metavar="[FILE]", help="Structure, if not benzene.")
]
Basis = Annotated[str, typer.Option(help="Gaussian basis, by PySCF's name.")]
Repeats = Annotated[int, typer.Option(min=1, help="Times each is run; medians are shown.")]


@bench.command()
@reported(resume=AGAIN)
def xc(
    file: Molecule = None,
    basis: Annotated[
        list[str] | None,
        typer.Option(help="Default def2-tzvp and def2-qzvp; may be repeated."),
    ] = None,
    model: Model = "ms2",
    grid_level: GridLevel = 3,
    device: Annotated[str, typer.Option(help="Where the network runs: cpu, cuda, ...")] = "cpu",
    repeats: Repeats = 5,
    max_memory: MaxMemory = None,
    plot: Plot = None,
    json: Json = None,
) -> Report:
    """One XC build: first and later ones, PBE and the parent in turn, and where the time goes."""
    refuse_picture(plot)
    import taufree
    from taufree.evaluation.speed import xc as speed

    try:
        functional = taufree.load_model(model).to(device)
    except (RuntimeError, AssertionError) as error:  # PyTorch's first line says what is wrong
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from error
    result = speed.bench_xc(
        functional,
        file=file,
        bases=basis or ["def2-tzvp", "def2-qzvp"],
        grid_level=grid_level,
        repeats=repeats,
        max_memory=max_memory,
        say=say,
    )
    draw(plot, speed.plot, result)
    return Report(result, speed.table(result))


@bench.command()
@reported(resume=AGAIN)
def crystals(
    name: Annotated[
        list[str] | None, typer.Option(help="Si, MgO or Al, if not all; may be repeated.")
    ] = None,
    kpts: Annotated[
        tuple[int, int, int], typer.Option(metavar="N N N", min=1, help="Mesh of k-points.")
    ] = (4, 4, 4),
    model: Model = "ms2",
    repeats: Repeats = 5,
    max_memory: MaxMemory = None,
    plot: Plot = None,
    json: Json = None,
) -> Report:
    """One XC build of crystals: first and later ones, PBE and the parent in turn."""
    refuse_picture(plot)
    import taufree
    from taufree.evaluation.speed import systems
    from taufree.evaluation.speed import xc as speed

    names = name or list(systems.CRYSTALS)
    unknown = sorted(set(names) - set(systems.CRYSTALS))
    if unknown:
        raise UserError(f"no crystal {', '.join(unknown)}: choose among Si, MgO and Al.")
    result = speed.bench_crystals(
        taufree.load_model(model),
        names=names,
        kpts=kpts,
        repeats=repeats,
        max_memory=max_memory,
        say=say,
    )
    draw(plot, speed.plot, result)
    return Report(result, speed.table(result))


@bench.command()
@reported(resume="With --json, finished turns are kept; the same command goes on.")
def scf(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="Structure, if not benzene and C16H34."),
    ] = None,
    basis: Basis = "def2-tzvp",
    model: Model = "ms2",
    grid_level: GridLevel = 3,
    repeats: Repeats = 5,
    max_memory: MaxMemory = None,
    plot: Plot = None,
    json: Json = None,
) -> Report:
    """Whole density-fitted SCF: wall time, cycles and energy beside PBE and the parent."""
    refuse_picture(plot)
    import taufree
    from taufree.evaluation.speed import scf as speed

    result = speed.bench_scf(
        taufree.load_model(model),
        file=file,
        basis=basis,
        grid_level=grid_level,
        repeats=repeats,
        max_memory=max_memory,
        say=say,
        keep=json,
    )
    draw(plot, speed.plot, result)
    return Report(result, speed.table(result), speed.unconverged(result))


@bench.command()
@reported(resume="With --json, finished sizes are kept; the same command goes on.")
def scaling(
    family: Annotated[
        list[str] | None, typer.Option(help="alkane or water (default both); may be repeated.")
    ] = None,
    atoms: Annotated[
        list[int] | None,
        typer.Option(min=1, help="At least so many (default 20, 40, 80, 150); may be repeated."),
    ] = None,
    basis: Basis = "def2-svp",
    model: Model = "ms2",
    grid_level: GridLevel = 3,
    repeats: Repeats = 3,
    max_memory: MaxMemory = None,
    reference_atoms: Annotated[
        int, typer.Option(min=0, help="Compare energies with the reference form up to this size.")
    ] = 50,
    parent_atoms: Annotated[
        int, typer.Option(min=0, help="Run PBE and the parent too up to this size.")
    ] = 160,
    plot: Plot = None,
    json: Json = None,
) -> Report:
    """Time and memory of an XC build against the number of atoms, with fitted exponents."""
    refuse_picture(plot)
    from taufree.evaluation.speed import scaling as speed

    setup = speed.Setup(
        model=model,
        basis=basis,
        grid_level=grid_level,
        repeats=repeats,
        max_memory=max_memory,
        reference_atoms=reference_atoms,
        parent_atoms=parent_atoms,
    )
    result = speed.bench_scaling(
        setup,
        families=family or ["alkane", "water"],
        sizes=atoms or [20, 40, 80, 150],
        say=say,
        keep=json,
    )
    draw(plot, speed.plot, result)
    return Report(result, speed.table(result), speed.failure(result))


@bench.command()
@reported(resume=AGAIN)
def train(
    file: Molecule = None,
    basis: Basis = "def2-svp",
    model: Model = "ms2",
    grid_level: GridLevel = 1,
    densities: Annotated[int, typer.Option(min=1, help="Densities in a step.")] = 8,
    points: Annotated[int, typer.Option(min=2, help="Grid points drawn from each.")] = 2000,
    repeats: Repeats = 20,
    plot: Plot = None,
    json: Json = None,
) -> Report:
    """Training throughput: grid points a second, forward and backward."""
    refuse_picture(plot)
    import taufree
    from taufree.evaluation.speed import train as speed

    result = speed.bench_train(
        taufree.load_model(model),
        file=file,
        basis=basis,
        grid_level=grid_level,
        densities=densities,
        points=points,
        repeats=repeats,
        say=say,
    )
    draw(plot, speed.plot, result)
    return Report(result, speed.table(result))


@bench.command()
@reported(resume=AGAIN)
def peers(
    file: Molecule = None,
    basis: Basis = "def2-tzvp",
    model: Model = "ms2",
    grid_level: GridLevel = 3,
    points: Annotated[
        int, typer.Option(min=2, help="Grid points for the source paper's network, which is slow.")
    ] = 8000,
    repeats: Repeats = 3,
    plot: Plot = None,
    json: Json = None,
) -> Report:
    """Time per grid point for energy and potential, beside the networks of others."""
    refuse_picture(plot)
    import taufree
    from taufree.evaluation.speed import peers as speed

    result = speed.bench_peers(
        taufree.load_model(model),
        file=file,
        basis=basis,
        grid_level=grid_level,
        points=points,
        repeats=repeats,
        say=say,
    )
    draw(plot, speed.plot, result)
    return Report(result, speed.table(result))


@bench.command()
@reported(resume=AGAIN)
def experts(
    file: Molecule = None,
    basis: Basis = "def2-tzvp",
    model: Model = "ms2",
    grid_level: GridLevel = 3,
    repeats: Repeats = 5,
    json: Json = None,
) -> Report:
    """What sparsity saves: each expert on its own points, beside all experts everywhere."""
    import taufree
    from taufree.evaluation.speed import experts as speed

    result = speed.bench_experts(
        taufree.load_model(model),
        file=file,
        basis=basis,
        grid_level=grid_level,
        repeats=repeats,
        say=say,
    )
    return Report(result, speed.table(result))


def say(line: str) -> None:
    """Progress, where somebody watches."""
    if stderr.is_terminal:
        stderr.print(line)


def draw(path: Path | None, plot: Any, result: dict[str, Any]) -> None:
    """Save the figure that ``plot`` makes of a result, if a path is given."""
    if path is not None:
        save_figure(plot(result), path)
