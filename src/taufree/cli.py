"""The command line: options in, one function of the package called, a table and JSON out.

Heavy imports stand inside the commands, so that ``taufree --help`` is quick.
"""

from __future__ import annotations

import os

# before NumPy, PyTorch and PySCF come in: each has threads of its own, and those that wait for
# work in a loop take the cores from the others (docs/performance.md)
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from pathlib import Path
from typing import Annotated, Literal

import typer

from taufree.console import Report, facts, reported, stderr
from taufree.evaluation.speed.commands import bench
from taufree.hosts.commands import md, relax, vibrations
from taufree.options import (
    Basis,
    Charge,
    GridLevel,
    Json,
    Kpts,
    MaxMemory,
    Model,
    Plot,
    Smearing,
    Spin,
)

AGAIN = "Nothing was written; the same command starts again."

app = typer.Typer(
    help="Deorbitalized meta-GGA functionals: density in, energy out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

data = typer.Typer(help="Parent densities to train and test on.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(bench, name="bench")
evaluate = typer.Typer(help="Errors of a model beside its parent.", no_args_is_help=True)
app.add_typer(evaluate, name="evaluate")
plot = typer.Typer(help="Pictures of what a model does.", no_args_is_help=True)
app.add_typer(plot, name="plot")

Potential = Annotated[
    Literal["ks", "gks"],
    typer.Option(help="Full functional derivative, or the parent's partial ones at the model's τ."),
]
Split = Annotated[
    Literal["train", "validation", "test"], typer.Option(help="Which systems, by formula.")
]
Comparators = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="Another network that taufree trained; may be repeated."),
]
Scheduler = Annotated[str | None, typer.Option(metavar="ADDRESS", help="A running Dask scheduler.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Local processes, if not one a core.")]


@app.command()
@reported(resume=AGAIN)
def run(
    file: Annotated[
        Path, typer.Argument(help="Structure: xyz, extxyz, cif, POSCAR, ... (of frames the last).")
    ],
    basis: Basis = None,
    charge: Charge = 0,
    spin: Spin = 0,
    kpts: Kpts = None,
    smearing: Smearing = 0.0,
    model: Model = "ms2",
    potential: Potential = "ks",
    parent: Annotated[bool, typer.Option("--parent", help="Run the parent beside it.")] = False,
    grid_level: Annotated[
        int | None,
        typer.Option(min=0, max=9, help="PySCF's grid level.", show_default="3; of crystals 1"),
    ] = None,
    density_fit: Annotated[bool, typer.Option(help="Fit the density for the Coulomb part.")] = True,
    max_memory: MaxMemory = None,
    json: Json = None,
) -> Report:
    """Self-consistent energy of a structure, and with --parent the difference to the parent's."""
    from taufree.hosts import single_point

    settings = single_point.Settings(
        basis=basis,
        charge=charge,
        spin=spin,
        model=model,
        potential=potential,
        grid_level=grid_level,
        density_fit=density_fit,
        max_memory=max_memory,
        kpts=kpts,
        smearing_ev=smearing,
    )
    on_cycle = _print_cycle if stderr.is_terminal else None
    result = single_point.single_point(file, settings, parent=parent, on_cycle=on_cycle)
    return Report(result, single_point.table(result), single_point.unconverged(result))


def _print_cycle(functional: str, cycle: int, energy: float) -> None:
    stderr.print(f"{functional:13}  cycle {cycle:3}  {energy:18.8f} hartree")


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


@app.command()
@reported(resume="The last checkpoint is kept; the same command goes on from it.")
def train(
    config: Annotated[Path, typer.Argument(help="The run: model, data, losses (see configs/).")],
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = True,
    json: Json = None,
) -> Report:
    """Train a model or a comparator, with checkpoints; goes on where it was interrupted."""
    from taufree.comparators import training as comparators
    from taufree.training import loop

    kind = comparators if comparators.is_comparator(config) else loop
    result = kind.train(config, resume=resume)
    return Report(result, facts(result))


@evaluate.command("density")
@reported(resume=AGAIN)
def evaluate_density(
    folder: Annotated[Path, typer.Argument(help="Folder of the records.")] = Path("data"),
    model: Model = "ms2",
    split: Split = "test",
    grid_level: GridLevel = 3,
    comparator: Comparators = None,
    plot: Plot = None,
    json: Json = None,
) -> Report:
    """Errors at the parent's densities: the model's and every other deorbitalizer's."""
    from taufree.comparators.trained import load_comparator
    from taufree.evaluation import density, plots

    if plot:
        plots.check_format(plot)
    others = [load_comparator(path) for path in comparator or ()]
    result = density.evaluate(model, folder, split, grid_level, stderr, others)
    if plot:
        plots.plot_density(result, plot)
    return Report(result, density.table(result))


@evaluate.command("scf")
@reported(resume="Finished systems are kept; the same command goes on.")
def evaluate_scf(
    out: Annotated[Path, typer.Argument(help="Folder that keeps finished systems.")] = Path("scf"),
    model: Model = "ms2",
    potential: Potential = "ks",
    split: Split = "test",
    name: Annotated[
        list[str] | None, typer.Option(help="Only this system; may be repeated.")
    ] = None,
    grid_level: GridLevel = 3,
    plot: Plot = None,
    scheduler: Scheduler = None,
    workers: Workers = None,
    json: Json = None,
) -> Report:
    """Self-consistent results beside the parent's; goes on where it was interrupted."""
    from taufree.data.build import select
    from taufree.evaluation import plots, scf

    if plot:
        plots.check_format(plot)
    result = scf.evaluate(
        model,
        split,
        potential=potential,
        out=out,
        systems=select(names=name) if name else None,
        level=grid_level,
        scheduler=scheduler,
        workers=workers,
        console=stderr,
    )
    if plot:
        plots.plot_scf(result, plot)
    return Report(result, scf.table(result))


@evaluate.command("reactions")
@reported(resume="Finished systems are kept; the same command goes on.")
def evaluate_reactions(
    out: Annotated[Path, typer.Argument(help="Folder that keeps finished systems.")] = Path(
        "reactions"
    ),
    model: Model = "ms2",
    collection: Annotated[
        list[str] | None, typer.Option("--set", help="dbh24 or s22; by default both.")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="Only this reaction; may be repeated.")
    ] = None,
    basis: Annotated[str, typer.Option(help="Gaussian basis, by PySCF's name.")] = "def2-svp",
    grid_level: GridLevel = 3,
    max_electrons: Annotated[
        int | None, typer.Option(min=1, help="Leave out reactions of larger systems.")
    ] = None,
    scheduler: Scheduler = None,
    workers: Workers = None,
    json: Json = None,
) -> Report:
    """Barrier heights and interaction energies beside the parent's; goes on where it stopped."""
    from taufree.data.reactions import SETS
    from taufree.evaluation import reactions

    result = reactions.evaluate(
        model,
        collection or SETS,
        out=out,
        names=name,
        basis=basis,
        level=grid_level,
        max_electrons=max_electrons,
        scheduler=scheduler,
        workers=workers,
        console=stderr,
    )
    return Report(result, reactions.table(result))


@evaluate.command("solids")
@reported(resume="Finished points are kept; the same command goes on.")
def evaluate_solids(
    out: Annotated[Path, typer.Argument(help="Folder that keeps finished points.")] = Path(
        "solids"
    ),
    model: Model = "ms2",
    split: Split = "test",
    name: Annotated[
        list[str] | None, typer.Option(help="Only this crystal; may be repeated.")
    ] = None,
    parent_only: Annotated[
        bool, typer.Option("--parent-only", help="The parent's points, which serve every model.")
    ] = False,
    plot: Plot = None,
    scheduler: Scheduler = None,
    workers: Workers = None,
    json: Json = None,
) -> Report:
    """Energy-volume curves of crystals beside the parent's; goes on where it was interrupted."""
    from taufree.data.build import select
    from taufree.evaluation import plots, solids

    if plot:
        plots.check_format(plot)
    result = solids.evaluate(
        model,
        split,
        out=out,
        systems=select(names=name) if name else None,
        parent_only=parent_only,
        scheduler=scheduler,
        workers=workers,
        console=stderr,
    )
    if plot:
        plots.plot_solids(result, plot)
    return Report(result, solids.table(result))


@evaluate.command("invariance")
@reported(resume=AGAIN)
def evaluate_invariance(
    folder: Annotated[Path, typer.Argument(help="Folder of the records.")] = Path("data"),
    model: Model = "ms2",
    name: Annotated[
        list[str] | None, typer.Option(help="Instead of three test molecules; may be repeated.")
    ] = None,
    grid_level: GridLevel = 1,
    comparator: Comparators = None,
    json: Json = None,
) -> Report:
    """Change of E_x when a density is turned, moved, or cut into chunks differently."""
    from taufree.comparators.trained import load_comparator
    from taufree.evaluation import invariance

    others = [load_comparator(path) for path in comparator or ()]
    result = invariance.evaluate(model, folder, others, name, grid_level)
    return Report(result, invariance.table(result))


@evaluate.command("limits")
@reported(resume=AGAIN)
def evaluate_limits(
    folder: Annotated[Path, typer.Argument(help="Folder of the records.")] = Path("data"),
    model: Model = "ms2",
    json: Json = None,
) -> Report:
    """Exact conditions: uniform scaling, the electron gas and its surface, one electron."""
    from taufree.evaluation import limits

    result = limits.evaluate(model, folder, stderr)
    return Report(result, limits.table(result))


@plot.command("experts")
@reported(resume=AGAIN)
def plot_experts(
    file: Annotated[Path, typer.Argument(help="Structure: xyz, cif, ... (of frames the last).")],
    picture: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Picture: .png, .svg or .pdf.")
    ] = Path("experts.png"),
    basis: Annotated[str | None, typer.Option(help="Gaussian basis, by PySCF's name.")] = None,
    charge: Annotated[int, typer.Option(help="Total charge.")] = 0,
    spin: Annotated[int, typer.Option(help="2S: the number of unpaired electrons.")] = 0,
    kpts: Annotated[
        tuple[int, int, int] | None,
        typer.Option(metavar="N N N", min=1, help="Mesh of k-points, of a crystal."),
    ] = None,
    model: Model = "ms2",
    grid_level: Annotated[
        int | None, typer.Option(min=0, max=9, help="PySCF's grid level.")
    ] = None,
    json: Json = None,
) -> Report:
    """The expert that owns each point of a plane, and e_x, v_ρ, v_σ, v_τ beside the parent's."""
    from taufree.evaluation import expert_map, plots
    from taufree.hosts.single_point import Settings

    plots.check_format(picture, "--out")
    settings = Settings(
        basis=basis, charge=charge, spin=spin, model=model, grid_level=grid_level, kpts=kpts
    )
    result, figure = expert_map.evaluate(file, settings)
    expert_map.save(figure, picture)
    result |= {"picture": picture}
    return Report(result, facts(result))


@evaluate.command("geometry")
@reported(resume="Finished molecules are kept; the same command goes on.")
def evaluate_geometry(
    out: Annotated[Path, typer.Argument(help="Folder that keeps finished molecules.")] = Path(
        "geometry"
    ),
    model: Model = "ms2",
    split: Split = "test",
    name: Annotated[
        list[str] | None, typer.Option(help="Only this molecule; may be repeated.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="So many of the smallest molecules (default: all).")
    ] = None,
    frequencies: Annotated[int, typer.Option(min=0, help="Of these, with frequencies.")] = 10,
    basis: Annotated[str, typer.Option(help="Of both functionals.")] = "def2-svp",
    grid_level: GridLevel = 3,
    scheduler: Scheduler = None,
    workers: Workers = None,
    json: Json = None,
) -> Report:
    """Relaxed molecules and harmonic frequencies beside the parent's."""
    from taufree.evaluation import geometry

    result = geometry.evaluate(
        model,
        split,
        out=out,
        names=name,
        limit=limit,
        frequencies=frequencies,
        basis=basis,
        level=grid_level,
        scheduler=scheduler,
        workers=workers,
        console=stderr,
    )
    return Report(result, geometry.table(result))


@evaluate.command("cells")
@reported(resume="Finished crystals and steps are kept; the same command goes on.")
def evaluate_cells(
    out: Annotated[Path, typer.Argument(help="Folder that keeps finished crystals.")] = Path(
        "cells"
    ),
    model: Model = "ms2",
    name: Annotated[
        list[str] | None, typer.Option(help="Only this crystal, Si or MgO; may be repeated.")
    ] = None,
    kpts: Annotated[
        tuple[int, int, int], typer.Option(metavar="N N N", min=1, help="Mesh of k-points.")
    ] = (2, 2, 2),
    scheduler: Scheduler = None,
    workers: Workers = None,
    json: Json = None,
) -> Report:
    """Si and MgO relaxed by their stress, beside the minimum of the equation of state."""
    from taufree.evaluation import cells

    result = cells.evaluate(
        model,
        out=out,
        names=name,
        kpts=kpts,
        scheduler=scheduler,
        workers=workers,
        console=stderr,
    )
    return Report(result, cells.table(result))


for command in (relax, vibrations, md):
    app.command()(command)


@app.command()
@reported(resume=AGAIN)
def export(
    model: Annotated[str, typer.Argument(help="A bundled model, or the path of one.")],
    file: Annotated[
        Path,
        typer.Argument(
            help="NAME.pt2 (torch.export: exchange, closed shells) or NAME.fun (TorchScript as "
            "Skala's: exchange-correlation, spin densities)."
        ),
    ],
    json: Json = None,
) -> Report:
    """A model in one file that other programs evaluate without taufree; molecules only."""
    from taufree.export import write

    result = write.export(model, file)
    return Report(result, facts(result))


@app.command()
@reported(resume=AGAIN)
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of results, the --json files.")],
    page: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page.")] = Path(
        "report.html"
    ),
    log: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="log.jsonl of a training run; may be repeated."),
    ] = None,
    json: Json = None,
) -> Report:
    """All results of a folder on one HTML page: tables, figures, learning curves."""
    from taufree.evaluation.report import write_report

    result = write_report(folder, page, log or ())
    return Report(result, facts(result))


@app.command()
@reported(resume=AGAIN)
def info(json: Json = None) -> Report:
    """Versions, bundled models with their measured errors, threads and device."""
    from taufree import about

    result = about.about()
    return Report(result, about.table(result))


def main() -> None:
    """Entry point of the ``taufree`` command."""
    app()


if __name__ == "__main__":
    main()
