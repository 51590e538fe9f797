"""Training throughput: optimization steps as `taufree.training` takes them, and the plain form."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from taufree.data.generate import grid_record
from taufree.data.orbitals import factor
from taufree.data.store import ReferenceDensity
from taufree.evaluation.speed import measure, systems
from taufree.evaluation.speed.measure import Say
from taufree.functional import Functional
from taufree.quantities import GridDensity
from taufree.training.config import TrainingConfig
from taufree.training.loop import make_optimizers
from taufree.training.losses import Losses
from taufree.training.samples import Batch, Densities, families_of

STEP = ("draw points", "forward and losses", "backward", "optimizers")


def bench_train(
    functional: Functional,
    *,
    file: Path | None = None,
    basis: str = "def2-svp",
    grid_level: int = 1,
    densities: int = 8,
    points: int = 2000,
    repeats: int = 20,
    say: Say,
) -> dict[str, Any]:
    """Grid points a second, forward and backward, in a step and in the plain form.

    A step draws ``points`` from each of ``densities`` densities, all of them here PySCF's first
    guess for one molecule: the cost of a step depends on sizes alone. The plain form,
    `Functional.energy_density`, differentiates E_x with respect to the parameters on the whole
    grid, and once more through the potential ∂E_x/∂ρ, as a loss on potentials needs it.
    """
    conditions = measure.conditions(functional)
    name, atoms = measure.read_or(systems.benzene, file)
    say(f"{name} {basis}: first-guess density")
    record = first_guess(atoms, functional, basis, grid_level)
    say(f"{repeats} steps of {densities} × {points} points")
    parts = step_parts(record, functional, densities, points, repeats)
    say("plain form on the whole grid")
    plain = plain_form(record, functional, max(repeats // 4, 1))
    n_step, n_grid = densities * points, record.density.rho.shape[1]
    step_s = sum(part["median_s"] for part in parts.values())
    return {
        "benchmark": "train",
        "conditions": conditions,
        "molecule": name,
        "basis": basis,
        "grid_level": grid_level,
        "step": {
            "densities": densities,
            "points": n_step,
            "parts": parts,
            "median_s": step_s,
            "points_per_s": n_step / step_s,
        },
        "plain_form": {
            "points": n_grid,
            **{
                order: {**times, "points_per_s": n_grid / times["median_s"]}
                for order, times in plain.items()
            },
        },
    }


def first_guess(
    atoms: Atoms, functional: Functional, basis: str, grid_level: int
) -> ReferenceDensity:
    """PySCF's first guess and the parent's exchange at it, as a record to train on."""
    parent = functional.parent.xc
    mf = measure.mean_fields(atoms, functional, basis, grid_level, None)[parent]
    (arrays,) = grid_record(mf, [factor(mf.get_init_guess(key="minao"))], grid_level, parent)
    tensor = {key: torch.from_numpy(value) for key, value in arrays.items()}
    density = GridDensity(
        **{key: tensor.pop(key) for key in ("coords", "weights", "rho", "grad_rho")},
        centers=torch.from_numpy(mf.mol.atom_coords()),
    )
    return ReferenceDensity(
        density=density,
        **tensor,
        name=atoms.get_chemical_formula(),
        formula=atoms.get_chemical_formula(),
        kind="benchmark",
        parent=parent,
        numbers=tuple(atoms.numbers.tolist()),
        charge=0,
        core_electrons=0,
        spin=0,
        grid_level=grid_level,
        density_kind="initial",
        e_tot=0.0,
    )


def step_parts(
    record: ReferenceDensity, functional: Functional, densities: int, points: int, repeats: int
) -> dict[str, dict[str, Any]]:
    """Times of the parts of one optimization step."""
    config = TrainingConfig(
        data=Path(), out=Path(), points_per_density=points, model=functional.network.config
    )
    losses = Losses(copy.deepcopy(functional.network).train(), config)
    optimizers = make_optimizers(losses.network, config)
    families = families_of([record], config.model)
    store = Densities(families, config.model.cutoff, "cpu")
    batch: list[Batch] = []
    total: list[Tensor] = []

    def draw_points() -> None:
        batch[:] = [store.draw(np.zeros(densities, int), points, seed=0)]

    def forward() -> None:
        total[:] = [losses(batch[0])["total"]]

    def backward() -> None:
        total[0].backward()

    def optimize() -> None:
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    tasks = dict(zip(STEP, (draw_points, forward, backward, optimize), strict=True))
    measure.interleaved(tasks, 2)
    return {name: measure.spread(s) for name, s in measure.interleaved(tasks, repeats).items()}


def plain_form(
    record: ReferenceDensity, functional: Functional, repeats: int
) -> dict[str, dict[str, Any]]:
    """Times of E_x's and of its potential's derivatives with respect to the parameters."""
    plain = Functional(copy.deepcopy(functional.network))
    density = record.density
    rho, weights = density.rho[0].requires_grad_(), density.weights
    grad_rho = density.grad_rho[0].requires_grad_()
    geometry = plain.geometry(density.coords, density.centers)
    parameters = list(plain.network.parameters())

    def energy() -> Tensor:
        return weights @ plain.energy_density(rho, grad_rho, weights, geometry)

    def energy_gradient() -> None:
        torch.autograd.grad(energy(), parameters, allow_unused=True)

    def potential_gradient() -> None:
        (v,) = torch.autograd.grad(energy(), rho, create_graph=True)
        torch.autograd.grad((v * v).sum(), parameters, allow_unused=True)

    tasks = {"energy": energy_gradient, "potential": potential_gradient}
    measure.interleaved(tasks, 1)
    return {name: measure.spread(s) for name, s in measure.interleaved(tasks, repeats).items()}


def table(result: dict[str, Any]) -> Table:
    """Parts of a step, and the plain form."""
    table = measure.new_table("Training", ["part", "median / s", "points / s"], result)
    step, plain = result["step"], result["plain_form"]
    table.add_row(
        f"one step, {step['densities']} densities, {step['points']:,} points",
        f"{step['median_s']:.4f}",
        f"{step['points_per_s']:,.0f}",
    )
    for name, part in step["parts"].items():
        table.add_row(f"  {name}", f"{part['median_s']:.4f}", "")
    table.add_section()
    for order in ("energy", "potential"):
        table.add_row(
            f"plain form, {plain['points']:,} points: {order}, then parameters",
            f"{plain[order]['median_s']:.4f}",
            f"{plain[order]['points_per_s']:,.0f}",
        )
    return table


def plot(result: dict[str, Any]) -> Figure:
    """Microseconds a point: a step by its parts, and the plain form."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    step, plain = result["step"], result["plain_form"]
    left = 0.0
    for name, part in step["parts"].items():
        width = 1e6 * part["median_s"] / step["points"]
        axes.barh(["optimization step"], [width], left=left, label=name)
        left += width
    for order in ("energy", "potential"):
        axes.barh([f"plain form, {order}"], [1e6 / plain[order]["points_per_s"]], color="0.6")
    axes.set(xlabel="wall time (µs a point)")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8)
    return measure.sign(figure, result)
