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
from typing import Annotated

import typer

from taufree.console import AGAIN, Report, facts, reported, stderr
from taufree.data.commands import data
from taufree.evaluation.commands import evaluate, plot
from taufree.evaluation.speed.commands import bench
from taufree.hosts.commands import md, relax, vibrations
from taufree.options import (
    Basis,
    Charge,
    Json,
    Kpts,
    MaxMemory,
    Model,
    OwnGridLevel,
    Potential,
    Smearing,
    Spin,
)

app = typer.Typer(
    help="Deorbitalized meta-GGA functionals: density in, energy out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for name, group in {"data": data, "bench": bench, "evaluate": evaluate, "plot": plot}.items():
    app.add_typer(group, name=name)


@app.command()
@reported(resume=AGAIN)
def run(
    file: Annotated[
        Path, typer.Argument(help="Structure: xyz, extxyz, cif, POSCAR, ... (of frames the last).")
    ],
    basis: Basis = None,
    charge: Charge = None,
    spin: Spin = None,
    kpts: Kpts = None,
    smearing: Smearing = 0.0,
    model: Model = "ms2",
    potential: Potential = "ks",
    parent: Annotated[bool, typer.Option("--parent", help="Run the parent beside it.")] = False,
    grid_level: OwnGridLevel = None,
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
