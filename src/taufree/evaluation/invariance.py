"""What a network's lack of invariance costs: E_x of one density, turned, moved, cut differently.

Grid points, weights, ρ, ∇ρ and nuclei move together, so that the exact answer is the same to
rounding: no grid is made anew, and whatever changes is the network's doing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from taufree.comparators.trained import Comparator
from taufree.data.reparent import with_parent
from taufree.data.store import ReferenceDensity, iter_records
from taufree.errors import UserError
from taufree.evaluation.density import MODEL, check_comparators
from taufree.evaluation.errors import MHA, exchange_energy, model_alpha
from taufree.functional import Functional
from taufree.model.storage import load_model

SYSTEMS = ("H2CO", "C2H4", "SO")
"""Molecules of the test split that are looked at unless others are named."""
AXIS, ANGLE = (0.36, 0.48, 0.80), 1.0
SHIFT = (1.0, -2.0, 0.5)
HALF_CHUNK = 2000


def rotation(record: ReferenceDensity) -> ReferenceDensity:
    """One radian about an axis along no bond."""
    x, y, z = AXIS
    generator = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    turn = torch.matrix_exp(ANGLE * generator)
    d = record.density
    moved = replace(
        d,
        coords=d.coords @ turn.T,
        centers=d.centers @ turn.T,
        grad_rho=d.grad_rho @ turn.T,
        lattice=None if d.lattice is None else d.lattice @ turn.T,
    )
    return replace(record, density=moved)


def translation(record: ReferenceDensity) -> ReferenceDensity:
    """By 2.3 bohr."""
    d, shift = record.density, torch.tensor(SHIFT, dtype=torch.float64)
    return replace(record, density=replace(d, coords=d.coords + shift, centers=d.centers + shift))


def chunks(record: ReferenceDensity) -> ReferenceDensity:
    """The points begun elsewhere, as by a code whose chunks are cut half a chunk later."""
    return _reordered(record, torch.arange(len(record.density.weights)).roll(-HALF_CHUNK))


def order(record: ReferenceDensity) -> ReferenceDensity:
    """The points in any order: whoever works chunk by chunk finds quite others beside them."""
    generator = torch.Generator().manual_seed(0)
    return _reordered(record, torch.randperm(len(record.density.weights), generator=generator))


MOVES = {move.__name__: move for move in (rotation, translation, chunks, order)}
"""Changes of the coordinates or the order of points that must change nothing else."""


def _reordered(record: ReferenceDensity, order: Tensor) -> ReferenceDensity:
    d = record.density
    moved = replace(
        d,
        coords=d.coords[order],
        weights=d.weights[order],
        rho=d.rho[:, order],
        grad_rho=d.grad_rho[:, order],
    )
    fields = ("tau", "lapl", "exc", "vrho", "vsigma", "vtau")
    shuffled: dict[str, Any] = {name: getattr(record, name)[:, order] for name in fields}
    return replace(record, density=moved, **shuffled)


def evaluate(
    model: str | Path | Functional,
    data: Path,
    comparators: Sequence[Comparator] = (),
    names: Collection[str] | None = None,
    level: int = 1,
) -> dict[str, Any]:
    """Change of E_x (mHa) by every move, for a model and networks of others, all in float64.

    Raises
    ------
    UserError
        The data hold none of the systems at this grid level, or a comparator is of another parent.
    """
    functional = load_model(model).double()
    check_comparators(functional, comparators)
    energies: dict[str, Callable[[ReferenceDensity], float]] = {
        MODEL: lambda record: exchange_energy(
            functional.parent, record.density, model_alpha(functional, record.density)[0]
        )
    }
    energies |= {other.name: other.double().exchange_energy for other in comparators}
    records = iter_records(
        data, names=names or SYSTEMS, levels=[level], density_kinds=["converged"]
    )
    lines = []
    for record in (with_parent(record, functional.parent.xc) for record in records):
        still = {name: energy(record) for name, energy in energies.items()}
        changes = {
            name: {m: MHA * (energy(change(record)) - still[name]) for m, change in MOVES.items()}
            for name, energy in energies.items()
        }
        lines.append({"name": record.name, "changes_mha": changes})
    if not lines:
        raise UserError(f"{data} holds none of {', '.join(names or SYSTEMS)} at level {level}.")
    return {"model": functional.name, "grid_level": level, "systems": lines}


def table(result: dict[str, Any]) -> Table:
    """One row a system and network, one column a move."""
    table = Table("system", "network", title="change of E_x, mHa", title_justify="left")
    for name in MOVES:
        table.add_column(name, justify="right")
    for line in result["systems"]:
        for i, (name, changes) in enumerate(line["changes_mha"].items()):
            label = result["model"] if name == MODEL else name
            cells = (f"{changes[m]:+.2g}" for m in MOVES)
            table.add_row("" if i else line["name"], label, *cells)
    return table
