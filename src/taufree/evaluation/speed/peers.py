"""Time per grid point for energy and potential: this network beside those of others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from pyscf import dft
from rich.table import Table
from torch import Tensor

from taufree.comparators.expert_transformers import N_EXPERTS, Exchange, ExpertTransformers
from taufree.comparators.linear_attention import LinearAttention
from taufree.evaluation.speed import measure, systems
from taufree.evaluation.speed.measure import DEORBITALIZED, GGA, Say
from taufree.evaluation.speed.skala import skala_features, skala_network
from taufree.functional import RHO_THRESHOLD, Functional, leaf
from taufree.physics.descriptors import contracted_gradient, kinetic_energy_density
from taufree.physics.parents import energy_density

OURS, SKALA = "taufree", "Skala 1.1"
LINEAR, EXPERTS = "linear attention (GDA)", "expert transformers"

Call = Callable[[bool], object]
"""Evaluates E_x and, if asked to, everything a potential is made of."""


@dataclass(frozen=True)
class Densities:
    """One density on PySCF's grid in atom-major order, which Skala needs; all networks get it."""

    mol: Any
    grids: dft.gen_grid.Grids
    coords: Tensor  # (n_points, 3)
    weights: Tensor  # (n_points,)
    rho: Tensor
    grad_rho: Tensor  # (n_points, 3)
    tau: Tensor


@dataclass(frozen=True)
class Peer:
    """A network, how it is called, on how many points, and what should be said of it."""

    call: Call
    points: int
    network: Any
    note: str


def bench_peers(
    functional: Functional,
    *,
    file: Path | None = None,
    basis: str = "def2-tzvp",
    grid_level: int = 3,
    points: int = 8000,
    repeats: int = 3,
    say: Say,
) -> dict[str, Any]:
    """Every network on PySCF's first guess for one molecule, and PySCF's whole XC builds.

    ``points`` limits only the source paper's network, which is slow.
    """
    conditions = measure.conditions(functional)
    name, atoms = measure.read_or(systems.benzene, file)
    fields = measure.mean_fields(atoms, functional, basis, grid_level, None)
    dm = fields[GGA].get_init_guess(key="minao")
    density = evaluate(fields[GGA], dm)
    torch.manual_seed(0)
    candidates: dict[str, Callable[[], Peer | None]] = {
        OURS: lambda: ours(functional, density),
        LINEAR: lambda: linear_attention(functional, density),
        SKALA: lambda: skala(density),
        EXPERTS: lambda: expert_transformers(density, points),
    }
    rows = {}
    for label, make in candidates.items():
        say(label)
        rows[label] = _row(make(), repeats)
    say("whole XC builds")
    for mf in fields.values():
        mf.grids = density.grids
    builds = {label: lambda mf=mf: measure.xc_build(mf, dm) for label, mf in fields.items()}
    measure.interleaved(builds, 1)
    whole = {
        label: _per_point(seconds, len(density.rho))
        for label, seconds in measure.interleaved(builds, repeats).items()
    }
    return {
        "benchmark": "peers",
        "conditions": conditions,
        "parent": functional.parent.xc,
        "molecule": name,
        "basis": basis,
        "grid_level": grid_level,
        "n_points": len(density.rho),
        "networks": rows,
        "whole_xc_build_us_per_point": whole,
    }


def _row(peer: Peer | None, repeats: int) -> dict[str, Any]:
    """Times of one network: one after another, for some need much memory while they live."""
    if peer is None:
        return {"note": "the package skala is not installed: not measured"}
    tasks = {"energy": lambda: peer.call(False), "energy_and_potential": lambda: peer.call(True)}
    measure.interleaved(tasks, 1)
    times = measure.interleaved(tasks, repeats)
    return {
        "parameters": sum(p.numel() for p in peer.network.parameters()),
        "dtype": str(next(peer.network.parameters()).dtype).removeprefix("torch."),
        "points": peer.points,
        **{what: measure.spread(seconds) for what, seconds in times.items()},
        **{f"{w}_us_per_point": _per_point(s, peer.points) for w, s in times.items()},
        "note": peer.note,
    }


def _per_point(seconds: list[float], points: int) -> float:
    return 1e6 * float(np.median(seconds)) / points


def evaluate(mf: dft.rks.RKS, dm: np.ndarray) -> Densities:
    """ρ, ∇ρ and τ of a density matrix on a new grid whose points are neither sorted nor padded."""
    grids = dft.gen_grid.Grids(mf.mol)
    grids.level, grids.alignment = mf.grids.level, 1
    grids.build(with_non0tab=True, sort_grids=False)
    ni = dft.numint.NumInt()
    blocks = [
        ni.eval_rho(mf.mol, ao, dm, mask, xctype="MGGA", hermi=1, with_lapl=False)
        for ao, mask, _, _ in ni.block_loop(mf.mol, grids, deriv=1)
    ]
    field = torch.from_numpy(np.concatenate(blocks, axis=-1))
    return Densities(
        mol=mf.mol,
        grids=grids,
        coords=torch.from_numpy(grids.coords),
        weights=torch.from_numpy(grids.weights),
        rho=field[0],
        grad_rho=field[1:4].T.contiguous(),
        tau=field[4],
    )


def ours(functional: Functional, density: Densities) -> Peer:
    """`Functional.potential`, and for the energy alone the plain form without its gradient."""
    held = density.rho > RHO_THRESHOLD
    centers = torch.from_numpy(density.mol.atom_coords())
    geometry = functional.geometry(density.coords[held], centers)
    arguments = (
        density.rho[held],
        density.grad_rho[held],
        density.weights[held],
        geometry,
    )

    def call(potential: bool) -> object:
        if potential:
            return functional.potential(*arguments)
        with torch.no_grad():
            return functional.energy_density(*arguments)

    return Peer(call, int(held.sum()), functional.network, "neighbour lists made once, not timed")


def linear_attention(functional: Functional, density: Densities) -> Peer:
    """τ by linear attention, the parent's e_x from it, and δE_x/δ(ρ, σ) backwards."""
    network = LinearAttention().eval()
    held = density.rho > RHO_THRESHOLD
    coords, weights = density.coords[held], density.weights[held]

    def call(potential: bool) -> object:
        with torch.set_grad_enabled(potential):
            rho = leaf(density.rho[held])
            sigma = leaf(contracted_gradient(density.grad_rho[held]))
            tau = network(*(x.float() for x in (rho, sigma, weights * rho, coords)))
            energy = weights @ energy_density(functional.parent, rho, sigma, tau.double())
            return torch.autograd.grad(energy, (rho, sigma)) if potential else energy

    return Peer(call, len(coords), network, "random weights")


def expert_transformers(density: Densities, points: int) -> Peer:
    """The source paper's network; its time goes with the points that share a chunk."""
    network = ExpertTransformers().double().eval()
    held = (density.rho > RHO_THRESHOLD).nonzero().squeeze(1)[:points]

    def run(part: Tensor, potential: bool) -> Exchange:
        rho, grad_rho, weights = density.rho[part], density.grad_rho[part], density.weights[part]
        tau = kinetic_energy_density(rho, contracted_gradient(grad_rho), torch.ones_like(rho))
        return network.exchange(rho, grad_rho, tau, weights, density.coords[part], potential)

    used = torch.bincount(run(held[: network.chunk], False).chosen, minlength=N_EXPERTS).tolist()
    note = (
        f"random weights, which route {used} points of the first chunk to the four experts; "
        "published size; partial derivatives; without the network that makes its τ"
    )
    return Peer(lambda potential: run(held, potential), len(held), network, note)


def skala(density: Densities) -> Peer | None:
    """Skala's network, with the derivatives that its meta-GGA matrix needs; None if not there."""
    network = skala_network()
    if network is None:
        return None
    grids, mol = density.grids, density.mol
    by_element = grids.gen_atomic_grids(
        mol, grids.atom_grid, grids.radi_method, grids.level, grids.prune
    )
    atomic = [torch.from_numpy(by_element[mol.atom_symbol(i)][1]) for i in range(mol.natm)]
    sizes = torch.tensor([len(w) for w in atomic])
    fixed = {
        "grid_coords": density.coords,
        "grid_weights": density.weights,
        "atomic_grid_weights": torch.cat(atomic),
        "atomic_grid_sizes": sizes,
        "atomic_grid_size_bound_shape": torch.zeros(int(sizes.max()), 0, dtype=torch.long),
        "coarse_0_atomic_coords": torch.from_numpy(mol.atom_coords()),
    }
    by_spin = {
        "density": (density.rho / 2).expand(2, -1),
        "grad": (density.grad_rho.T / 2).expand(2, -1, -1),
        "kin": (density.tau / 2).expand(2, -1),
    }

    def call(potential: bool) -> object:
        with torch.set_grad_enabled(potential):
            inputs = {name: leaf(x.contiguous()) for name, x in by_spin.items()}
            energy = network.get_exc(skala_features({**inputs, **fixed}))
            return torch.autograd.grad(energy, list(inputs.values())) if potential else energy

    return Peer(call, len(density.rho), network, "random weights; needs τ: costs a meta-GGA build")


def table(result: dict[str, Any]) -> Table:
    """A row a network, then what PySCF's whole XC builds cost."""
    columns = ["network", "parameters", "precision", "points", "energy, µs/point"]
    columns += ["energy and potential, µs/point"]
    title = f"{result['molecule']} {result['basis']}, {result['n_points']:,} points"
    table = measure.new_table(title, columns, result)
    for name, row in result["networks"].items():
        if "points" not in row:
            table.add_row(f"{name}\n  [dim]{row['note']}[/dim]")
            continue
        table.add_row(
            f"{name}\n  [dim]{row['note']}[/dim]",
            f"{row['parameters']:,}",
            row["dtype"],
            f"{row['points']:,}",
            _shown(row["energy_us_per_point"]),
            _shown(row["energy_and_potential_us_per_point"]),
        )
    table.add_section()
    for name, microseconds in result["whole_xc_build_us_per_point"].items():
        table.add_row(f"whole XC build, {name}", "", "", "", "", _shown(microseconds))
    return table


def _shown(microseconds: float) -> str:
    return f"{microseconds:,.0f}" if microseconds >= 100 else f"{microseconds:.3g}"


def plot(result: dict[str, Any]) -> Figure:
    """Microseconds a grid point on a logarithmic axis."""
    rows = {n: r for n, r in result["networks"].items() if "points" in r}
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    y = np.arange(len(rows))
    both = [r["energy_and_potential_us_per_point"] for r in rows.values()]
    energy = [r["energy_us_per_point"] for r in rows.values()]
    colors = [measure.color(DEORBITALIZED) if n == OURS else "0.45" for n in rows]
    bars = axes.barh(y - 0.2, both, 0.4, color=colors)
    axes.bar_label(bars, [_shown(v) for v in both], padding=3)
    bars = axes.barh(y + 0.2, energy, 0.4, color=colors, alpha=0.4)
    axes.bar_label(bars, [_shown(v) for v in energy], padding=3)
    for name, value in result["whole_xc_build_us_per_point"].items():
        axes.axvline(value, color=measure.color(name), linestyle="--", label=f"XC build, {name}")
    axes.set_yticks(y, list(rows))
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set(xscale="log", xlabel="wall time (µs a grid point): energy and potential; pale: energy")
    axes.legend(fontsize=8, loc="upper right")
    axes.grid(axis="x", which="both", alpha=0.2)
    axes.set_axisbelow(True)
    return measure.sign(figure, result)
