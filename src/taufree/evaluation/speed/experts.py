"""What sparsity saves: each expert on its own points, beside every expert on every point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from taufree.evaluation.speed import measure, systems
from taufree.evaluation.speed.measure import DEORBITALIZED, Say
from taufree.evaluation.speed.peers import evaluate
from taufree.functional import RHO_THRESHOLD, Functional
from taufree.model.averages import averaged, see_averages, widths
from taufree.model.network import local_inputs, token_values
from taufree.model.sight import see
from taufree.physics.descriptors import reduced_gradient


def bench_experts(
    functional: Functional,
    *,
    file: Path | None = None,
    basis: str = "def2-tzvp",
    grid_level: int = 3,
    repeats: int = 5,
    say: Say,
) -> dict[str, Any]:
    """The experts on all grid points of a molecule, forward and backward to their inputs."""
    conditions = measure.conditions(functional)
    name, atoms = measure.read_or(systems.benzene, file)
    mf = measure.mean_fields(atoms, functional, basis, grid_level, None)[DEORBITALIZED]
    density = evaluate(mf, mf.get_init_guess(key="minao"))
    held = density.rho > RHO_THRESHOLD
    rho, weights = density.rho[held], density.weights[held]
    geometry = functional.geometry(density.coords[held], torch.from_numpy(mf.mol.atom_coords()))
    s = reduced_gradient(rho, density.grad_rho[held])
    network, experts = functional.network, functional.network.experts
    with torch.no_grad():
        token_map, b = geometry.token_map, widths(rho, s)
        values = token_values(s, weights * rho, geometry.normalizer)
        c = token_map.to_tokens(values.to(functional.dtype))
        z, y, q = functional.answers(c, geometry.bonds)
        averages = see_averages(averaged(token_map, q, b), rho, s, b).to(functional.dtype)
        local = local_inputs(rho, s).to(functional.dtype)
        seen = see(local, token_map.to_points(z, y), network.config.n_directed)
        inputs = torch.cat([seen, averages], 1)
        gates = experts.gates(inputs)
    forms = {
        "sparse": lambda x: experts(x)[0],
        "every expert everywhere": lambda x: experts.densely(x)[0],
    }
    say(f"{len(inputs)} grid points")

    def run(form: Any) -> None:
        x = inputs.detach().requires_grad_()
        torch.autograd.grad(form(x).sum(), x)

    tasks = {label: lambda form=form: run(form) for label, form in forms.items()}
    measure.interleaved(tasks, 1)
    times = measure.interleaved(tasks, repeats)
    return {
        "benchmark": "experts",
        "conditions": conditions,
        "molecule": name,
        "n_points": len(inputs),
        "n_experts": experts.n_experts,
        "mean_active": float((gates > 0).sum(1).double().mean()),
        "max_active": int((gates > 0).sum(1).max()),
        "forms": {label: measure.spread(seconds) for label, seconds in times.items()},
    }


def table(result: dict[str, Any]) -> Table:
    """Seconds of both forms."""
    title = (
        f"Experts of {result['molecule']}: {result['n_points']} points, {result['mean_active']:.2f}"
        f" of {result['n_experts']} experts active at a point, at most {result['max_active']}"
    )
    table = measure.new_table(title, ["form", "median s", "of the dense form"], result)
    whole = result["forms"]["every expert everywhere"]["median_s"]
    for label, times in result["forms"].items():
        table.add_row(label, f"{times['median_s']:.3f}", f"{times['median_s'] / whole:.2f}")
    return table
