"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the result to FILE as JSON.")
]
Plot = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draw the result (.svg, .png or .pdf).")
]
Model = Annotated[str, typer.Option(help="A bundled model, or the path of one.")]
AnyModel = Annotated[
    str,
    typer.Option(
        "--model",
        help="A bundled model, the path of one, an analytic recipe (PCopt, GE2, ...), or a "
        "comparator that taufree trained.",
    ),
]
Basis = Annotated[
    str | None,
    typer.Option(
        help="Gaussian basis, by PySCF's name.",
        show_default="def2-tzvp; of crystals gth-dzvp-molopt-sr, with pseudopotentials",
    ),
]
Charge = Annotated[
    int | None, typer.Option(help="Total charge.", show_default="initial charges in FILE, else 0")
]
Spin = Annotated[
    int | None,
    typer.Option(
        help="2S: the number of unpaired electrons.",
        show_default="initial magnetic moments in FILE, else 0",
    ),
]
Kpts = Annotated[
    tuple[int, int, int] | None,
    typer.Option(
        metavar="N N N", min=1, help="Mesh of k-points, of a crystal.", show_default=False
    ),
]
Smearing = Annotated[
    float, typer.Option(min=0, help="Width of the Fermi function, eV, for metals.")
]
GridLevel = Annotated[int, typer.Option(min=0, max=9, help="PySCF's grid level.")]
OwnGridLevel = Annotated[
    int | None,
    typer.Option(min=0, max=9, help="PySCF's grid level.", show_default="3; of crystals 1"),
]
MaxMemory = Annotated[int | None, typer.Option(min=1, help="PySCF's memory limit, MB.")]
Potential = Annotated[
    Literal["ks", "gks"],
    typer.Option(help="Full functional derivative, or the parent's partial ones at the model's τ."),
]
Scheduler = Annotated[str | None, typer.Option(metavar="ADDRESS", help="A running Dask scheduler.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Local processes, if not one a core.")]
