"""``taufree evaluate`` and ``taufree plot``: errors of a model beside its parent, and pictures.

Heavy imports stand inside the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from taufree.console import AGAIN, Report, facts, refuse_picture, reported, stderr
from taufree.files import save_figure
from taufree.options import (
    AnyModel,
    Basis,
    Charge,
    GridLevel,
    Json,
    Kpts,
    Model,
    OwnGridLevel,
    Plot,
    Potential,
    Scheduler,
    Smearing,
    Spin,
    Workers,
)

evaluate = typer.Typer(help="Errors of a model beside its parent.", no_args_is_help=True)
plot = typer.Typer(help="Pictures of what a model does.", no_args_is_help=True)

Split = Annotated[
    Literal["train", "validation", "test"], typer.Option(help="Which systems, by formula.")
]
Comparators = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="Another network that taufree trained; may be repeated."),
]


@evaluate.command("density")
@reported(resume="With --json, finished systems are kept; the same command goes on.")
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

    refuse_picture(plot)
    others = [load_comparator(path) for path in comparator or ()]
    result = density.evaluate(model, folder, split, grid_level, stderr, others, json)
    if plot:
        plots.plot_density(result, plot)
    return Report({"evaluation": "density", **result}, density.table(result))


@evaluate.command("scf")
@reported(resume="Finished systems are kept; the same command goes on.")
def evaluate_scf(
    out: Annotated[Path, typer.Argument(help="Folder that keeps finished systems.")] = Path("scf"),
    model: AnyModel = "ms2",
    potential: Potential = "ks",
    split: Split = "test",
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="Kind of systems (g2, crystals-gth, ...), unless some are named; may be repeated.",
            show_default="distinct molecules and atoms",
        ),
    ] = None,
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

    refuse_picture(plot)
    if kind:
        select(kind)  # says which kinds there are
    result = scf.evaluate(
        model,
        split,
        kinds=kind or scf.DISTINCT,
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
    return Report({"evaluation": "scf", **result}, scf.table(result))


@evaluate.command("reactions")
@reported(resume="Finished systems are kept; the same command goes on.")
def evaluate_reactions(
    out: Annotated[Path, typer.Argument(help="Folder that keeps finished systems.")] = Path(
        "reactions"
    ),
    model: AnyModel = "ms2",
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
    return Report({"evaluation": "reactions", **result}, reactions.table(result))


@evaluate.command("solids")
@reported(resume="Finished points are kept; the same command goes on.")
def evaluate_solids(
    out: Annotated[Path, typer.Argument(help="Folder that keeps finished points.")] = Path(
        "solids"
    ),
    model: AnyModel = "ms2",
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

    refuse_picture(plot)
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
    return Report({"evaluation": "solids", **result}, solids.table(result))


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
    return Report({"evaluation": "invariance", **result}, invariance.table(result))


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
    return Report({"evaluation": "limits", **result}, limits.table(result))


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
    return Report({"evaluation": "geometry", **result}, geometry.table(result))


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
    return Report({"evaluation": "cells", **result}, cells.table(result))


@plot.command("experts")
@reported(resume=AGAIN)
def plot_experts(
    file: Annotated[Path, typer.Argument(help="Structure: xyz, cif, ... (of frames the last).")],
    picture: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Picture: .png, .svg or .pdf.")
    ] = Path("experts.png"),
    basis: Basis = None,
    charge: Charge = None,
    spin: Spin = None,
    kpts: Kpts = None,
    smearing: Smearing = 0.0,
    model: Model = "ms2",
    grid_level: OwnGridLevel = None,
    json: Json = None,
) -> Report:
    """The expert that owns each point of a plane, and e_x, v_ρ, v_σ, v_τ beside the parent's."""
    from taufree.evaluation import expert_map
    from taufree.hosts.single_point import Settings

    refuse_picture(picture, "--out")
    settings = Settings(
        basis=basis,
        charge=charge,
        spin=spin,
        model=model,
        grid_level=grid_level,
        kpts=kpts,
        smearing_ev=smearing,
    )
    result, figure = expert_map.evaluate(file, settings)
    save_figure(figure, picture)
    result |= {"picture": picture}
    return Report(result, facts(result))
