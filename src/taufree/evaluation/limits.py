"""Exact conditions that the network has not by construction: measured, so that they can be stated.

* Uniform coordinate scaling, E_x[ρ_λ] = λ E_x[ρ] with ρ_λ(r) = λ³ρ(λr): p and α are invariant, so
  the parent and every α̃(p, q) obey it; a network that knows ln ρ and lengths had to learn it.
* The uniform gas, α = 1: exact without gradient and without a nucleus in reach (checked here). The
  jellium slab between infinite barriers has a gradient and no nuclei at all, like nothing in the
  training data.
* One electron, α = 0: hydrogen-like atoms, and H₂⁺ as it dissociates.
* Closed shells as bonds break, at the parent's densities: with two electrons α = 0 here too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor

from taufree.data import orbitals
from taufree.data.generate import converge_parent, grid_record
from taufree.data.store import (
    ReferenceDensity,
    entries_of,
    load_record,
    manifest_checksum,
    read_manifest,
)
from taufree.data.systems import System, registry
from taufree.errors import UserError
from taufree.evaluation.closed_forms import ExactDensity, jellium_slab, one_electron
from taufree.evaluation.density import MODEL
from taufree.evaluation.errors import MHA, exchange_energy, model_alpha, spin_scaled
from taufree.functional import Functional, hold
from taufree.model.storage import load_model
from taufree.physics.descriptors import (
    iso_orbital_indicator,
    reduced_gradient_squared,
    reduced_laplacian,
)
from taufree.physics.kinetic import DEORBITALIZERS
from taufree.quantities import GridDensity

FACTORS = (0.5, 0.7, 1 / 1.2, 1.2, 1.5, 2.0)
"""λ of uniform scaling."""
SCALED_KIND, SCALED_LEVEL = "g2", 1
"""Molecules of the test split whose densities are scaled, and the grid level of their records."""
METALS = (2.0, 3.0, 4.0, 5.0, 6.0)
"""r_s of the slabs, bohr: aluminium is near 2, caesium near 6."""
NUCLEAR_CHARGES = (1, 2, 3)
SEPARATIONS = (2.0, 4.0, 6.0, 8.0)
"""Bond lengths of H₂⁺, bohr; 2 is its equilibrium."""
STRETCHED = ("H2", "LiF", "N2", "F2")
STRETCHES = (1.0, 1.5, 2.0, 3.0)
"""Of the bond lengths of `STRETCHED` at equilibrium."""
STRETCHED_LEVEL = 3
TITLES = {
    "jellium slab": "slabs",
    "one electron": "one_electron",
    "closed shells, stretched": "stretched",
}
SHOWN = (MODEL, "PCopt", "TFvW")
"""Deorbitalizers in the table; the result has all."""


def evaluate(
    model: str | Path | Functional, data: Path, console: Console | None = None
) -> dict[str, Any]:
    """Errors of a model in limits where the exact answer, or the parent's, is known.

    Parameters
    ----------
    model : str, Path or Functional
        Name of a bundled model, a path, or a loaded functional.
    data : Path
        Folder of ``taufree data build``, for the densities to scale.
    console : Console, optional
        Where progress is shown.

    Returns
    -------
    dict
        ``uniform_scaling``: ``means`` over ``count`` molecules, for each ``factor`` λ the mean of
        |E_x[ρ_λ] − λE_x[ρ]| ``relative`` to |λE_x[ρ]|, its ``largest_relative``, and
        ``mha_per_electron``; and of each of the ``systems`` ``e_x_hartree`` = E_x[ρ] of the model
        and the signed ``error_mha`` at each of ``factors``.
        ``uniform_gas``: ``max_alpha_error``, the largest |α̃ − 1| at the densities of ``r_s``.
        ``slabs``, ``one_electron`` and ``stretched``: of each density its name ``at``, number of
        ``electrons``, the parent's ``e_x_hartree`` at the exact α (of a slab both per bohr²),
        ``mean_alpha`` = ∫ρα/∫ρ, and ``errors`` of each deorbitalizer: signed ``relative`` and
        ``mha_per_electron`` of E_x, and its ``mean_alpha``.

    Raises
    ------
    UserError
        The data hold no density to scale, or are damaged.
    """
    functional = load_model(model)
    scaling = _uniform_scaling(functional, data, console)
    slabs = [(f"r_s = {r_s:g}", jellium_slab(r_s)) for r_s in METALS]
    return {
        "model": functional.name,
        "parent": functional.parent.xc,
        "data": {"folder": data, "checksum": manifest_checksum(read_manifest(data))},
        "uniform_scaling": scaling,
        "uniform_gas": _uniform_gas(functional),
        "slabs": [_errors(functional, at, exact) for at, exact in slabs],
        "one_electron": [_errors(functional, at, exact) for at, exact in _one_electron_systems()],
        "stretched": [
            _errors(functional, at, _converged(system))
            for at, system in track(
                list(_stretched_systems(functional.parent.xc)), "stretched bonds",
                console=console, disable=console is None,
            )
        ],
    }  # fmt: skip


def _uniform_scaling(functional: Functional, data: Path, console: Console | None) -> dict[str, Any]:
    chosen = [entry for entry in entries_of(data, "test") if entry.kind == SCALED_KIND]
    systems = [
        _scaling_errors(functional, record)
        for entry in track(chosen, "scaled densities", console=console, disable=console is None)
        for record in load_record(data / entry.file, [SCALED_LEVEL], ["converged"], entry.sha256)
    ]
    if not systems:
        raise UserError(
            f"{data} holds no {SCALED_KIND} density of the test split at grid level {SCALED_LEVEL}:"
            f" run `taufree data build {data} --kind {SCALED_KIND} --grid-level {SCALED_LEVEL}`."
        )
    means = []
    for i, factor in enumerate(FACTORS):
        absolute = [abs(s["error_mha"][i]) for s in systems]
        relative = [
            e / abs(MHA * factor * s["e_x_hartree"]) for e, s in zip(absolute, systems, strict=True)
        ]
        a_electron = [e / s["n_electrons"] for e, s in zip(absolute, systems, strict=True)]
        means.append(
            {
                "factor": factor,
                "relative": fmean(relative),
                "largest_relative": max(relative),
                "mha_per_electron": fmean(a_electron),
            }
        )
    return {
        "count": len(systems),
        "grid_level": SCALED_LEVEL,
        "factors": list(FACTORS),
        "means": means,
        "systems": systems,
    }


def _scaling_errors(functional: Functional, record: ReferenceDensity) -> dict[str, Any]:
    def e_x(factor: float) -> float:
        density = record.density.scaled(factor)
        return exchange_energy(functional.parent, density, model_alpha(functional, density)[0])

    unscaled = e_x(1.0)
    return {
        "name": record.name,
        "n_electrons": record.n_electrons,
        "e_x_hartree": unscaled,
        "error_mha": [MHA * (e_x(factor) - factor * unscaled) for factor in FACTORS],
    }


def _uniform_gas(functional: Functional) -> dict[str, Any]:
    r_s = [0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0, 100.0]
    rho = 3 / (4 * math.pi * torch.tensor(r_s, dtype=torch.float64) ** 3)
    nowhere = torch.zeros(len(r_s), 3, dtype=torch.float64)
    gas = GridDensity(nowhere, torch.ones_like(rho), rho[None], nowhere[None], nowhere[:0])
    return {"r_s": r_s, "max_alpha_error": float((model_alpha(functional, gas)[0] - 1).abs().max())}


def _one_electron_systems() -> Iterator[tuple[str, ExactDensity]]:
    for charge in NUCLEAR_CHARGES:
        yield f"Z = {charge}", one_electron(torch.zeros(1, 3, dtype=torch.float64), charge)
    for r in SEPARATIONS:
        ends = torch.tensor([[0, 0, -r / 2], [0, 0, r / 2]], dtype=torch.float64)
        yield f"H₂⁺, R = {r:g}", one_electron(ends)


def _stretched_systems(parent: str) -> Iterator[tuple[str, System]]:
    """Helium, and molecules of closed shells at each of `STRETCHES`."""
    yield "He", replace(registry()["He"], parent=parent)
    for name in STRETCHED:
        known = registry()[name]
        for stretch in STRETCHES:
            positions = tuple(
                (stretch * x, stretch * y, stretch * z) for x, y, z in known.positions
            )
            yield f"{name}, {stretch:g} R", replace(known, positions=positions, parent=parent)


def _converged(system: System) -> ExactDensity:
    """The parent's self-consistent density of a closed shell."""
    mf = converge_parent(system, level=STRETCHED_LEVEL)
    (found,) = grid_record(mf, [orbitals.factor(mf.make_rdm1())], STRETCHED_LEVEL, system.parent)
    fields = {key: torch.from_numpy(np.ascontiguousarray(x)) for key, x in found.items()}
    coords, weights, rho, grad_rho = (
        fields[key] for key in ("coords", "weights", "rho", "grad_rho")
    )
    centers = torch.tensor(system.positions, dtype=torch.float64)
    density = GridDensity(coords, weights, rho, grad_rho, centers)
    held_rho, sigma, _ = hold(*spin_scaled(density))
    alpha = iso_orbital_indicator(held_rho, sigma, fields["tau"])
    return ExactDensity(density, fields["lapl"], alpha)


def _errors(functional: Functional, at: str, exact: ExactDensity) -> dict[str, Any]:
    density, parent = exact.density, functional.parent
    rho, sigma, held = hold(*spin_scaled(density))
    p, q = reduced_gradient_squared(rho, sigma), reduced_laplacian(rho, density.n_spin * exact.lapl)
    electrons = float((density.rho @ density.weights).sum())
    e_x = exchange_energy(parent, density, exact.alpha)

    def mean(alpha: Tensor) -> float:
        return float((held * density.rho * alpha @ density.weights).sum()) / electrons

    errors = {}
    alphas = {name: deorbitalizer(p, q) for name, deorbitalizer in DEORBITALIZERS.items()}
    for name, alpha in {MODEL: model_alpha(functional, density)[0], **alphas}.items():
        error = exchange_energy(parent, density, alpha) - e_x
        errors[name] = {
            "relative": error / abs(e_x),
            "mha_per_electron": MHA * error / electrons,
            "mean_alpha": mean(alpha),
        }
    return {
        "at": at,
        "electrons": electrons,
        "e_x_hartree": e_x,
        "mean_alpha": mean(exact.alpha),
        "errors": errors,
    }


def table(result: dict[str, Any]) -> Table:
    """Errors of E_x in every limit: percent, and mHa (scaling and slabs: per electron)."""
    scaling, gas = result["uniform_scaling"], result["uniform_gas"]
    table = Table(
        title=f"exact conditions: errors of E_x, {escape(Path(result['model']).name) or MODEL} for "
        f"{result['parent']}",
        title_justify="left",
    )
    table.add_column("condition")
    table.add_column("at")
    for unit in ("%", "mHa"):
        for name in SHOWN:
            table.add_column(f"{name}\n{unit}", justify="right")
    by_form = ["0"] * (len(SHOWN) - 1)
    for i, mean in enumerate(scaling["means"]):
        label = f"scaling, {scaling['count']} molecules" if i == 0 else ""
        percent, mha = f"{100 * mean['relative']:.4f}", f"{mean['mha_per_electron']:.2f}"
        table.add_row(label, f"λ = {mean['factor']:.3g}", percent, *by_form, mha, *by_form)
    table.add_section()
    for title, key in TITLES.items():
        for i, line in enumerate(result[key]):
            errors = [line["errors"][name] for name in SHOWN]
            percents = [f"{100 * e['relative']:+.4f}" for e in errors]
            electrons = 1 if key == "slabs" else line["electrons"]
            mhas = [f"{electrons * e['mha_per_electron']:+.2f}" for e in errors]
            table.add_row(title if i == 0 else "", line["at"], *percents, *mhas)
        table.add_section()
    table.caption = (
        "scaling: E_x[ρ_λ] against λE_x[ρ], means of absolute values; every α(p, q) obeys it\n"
        "scaling and slabs in mHa per electron\n"
        "slab, one electron, closed shells: against the parent at the exact α\n"
        f"uniform gas: largest |α̃ − 1| is {gas['max_alpha_error']:.1g}"
    )
    return table
