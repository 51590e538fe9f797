"""``taufree train CONFIG`` for a config that names a ``comparator``.

Linear attention predicts τ, and is trained through the parent's e_x and α/(1 + α) on points drawn
from a density.
Of the four transformers, each is trained on the points it is sent, chunk by chunk as published;
the router, which a hard arg-max gives no gradient, learns by cross-entropy to name the expert that
errs least on a quarter of the points, as many as each expert sees of them in the mean. One step in
ten sends points at random, so that no expert is left without any.
"""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from taufree.comparators.expert_transformers import N_EXPERTS, ExpertTransformers
from taufree.comparators.trained import (
    Architecture,
    channels,
    device_at_hand,
    load_comparator,
)
from taufree.comparators.widening import widen
from taufree.console import stderr
from taufree.data.reparent import with_parent
from taufree.data.store import entries_of, load_record, manifest_checksum
from taufree.errors import UserError
from taufree.functional import RHO_THRESHOLD
from taufree.model.storage import origin, save_model
from taufree.physics.descriptors import (
    contracted_gradient,
    iso_orbital_indicator,
    lda_exchange,
)
from taufree.physics.parents import PARENTS, energy_density
from taufree.training.checkpoint import load_checkpoint, save_checkpoint
from taufree.training.config import read_config


class Points(NamedTuple):
    """Points of an unpolarized density: (n_points,) each, ∇ρ and coordinates (n_points, 3)."""

    rho: Tensor
    grad_rho: Tensor
    estimate: Tensor
    """The orbital-free τ that `ExpertTransformers` takes in."""
    weights: Tensor
    coords: Tensor
    exc: Tensor
    """The parent's e_x, an energy per volume."""
    tau: Tensor
    """The orbitals' τ."""


WARMUP = 50
"""Steps until the learning rate is at its full height, from which it falls linearly to zero."""
RANDOM_ROUTES = 0.1
"""Share of the steps whose points are sent to the experts at random."""
INDICATOR_WEIGHT = 0.1
"""Weight (Ha) of ∫ρ|Δ(α/(1 + α))| per electron beside ∫|Δe_x|: F_x is flat at α = 0, 1 and ∞."""


class ComparatorConfig(BaseModel):
    """Everything that a run depends on, beside the data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture
    data: Path
    out: Path
    name: str
    start: Path | None = None
    """Weights to start from; by default random ones.

    They are of the same architecture, or those of narrower transformers, which are widened."""
    seed: int = Field(0, ge=0)
    kinds: tuple[str, ...] | None = Field(None, min_length=1)
    """Kinds of systems to learn from; None: all that the data hold."""
    levels: tuple[int, ...] = Field((1,), min_length=1)
    steps: int = Field(1000, ge=1)
    points: int = Field(4000, ge=2)
    """Points of one density in a step: a chunk of neighbours in its grid, or so many drawn."""
    learning_rate: float = Field(1e-3, gt=0)
    half_precision: bool = False
    """Round the trained weights to half precision, for a file of half the size."""
    checkpoint_every: int = Field(50, ge=1)


def is_comparator(path: Path) -> bool:
    """Whether a config is of this kind; one that cannot be read is left to others to refuse."""
    try:
        return "architecture" in tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False


def train(path: Path, *, resume: bool = True) -> dict[str, Any]:
    """Train a comparator as a TOML file says, from its last checkpoint if there is one.

    Raises
    ------
    UserError
        Bad settings, no data, or a checkpoint of other settings or data.
    """
    config = read_config(path, ComparatorConfig)
    device = device_at_hand()
    torch.manual_seed(config.seed)
    network = config.architecture.build()
    if config.start is not None:
        begin_from(config.start, network)
    network = network.train().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, fused=True)
    config.out.mkdir(parents=True, exist_ok=True)
    checkpoint, log = config.out / "checkpoint.safetensors", config.out / "log.jsonl"
    settings = config.model_dump(mode="json")
    learned = {entry.name: entry for entry in entries_of(config.data, "train", config.kinds)}
    checksum = manifest_checksum(learned)
    step, running = 0, float("nan")
    if resume and checkpoint.exists():
        state = load_checkpoint(checkpoint, network, [optimizer])
        if state["config"] != settings:
            raise UserError(f"{checkpoint} was made with other settings; remove it to start anew.")
        if state["data"] != checksum:
            raise UserError(f"{checkpoint} was made with other data; remove it to start anew.")
        step, running = state["step"], state["running"]
    else:
        log.unlink(missing_ok=True)
    with stderr.status("reading train densities"):
        train_set = load_densities(config, device)

    with stderr.status("training") as status:
        while step < config.steps:
            rate = config.learning_rate * min(1, (step + 1) / WARMUP) * (1 - step / config.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            points, electrons = draw(config, train_set, generator)
            loss, error = losses(network, points, electrons, generator)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            running = error if step == 1 else 0.98 * running + 0.02 * error
            status.update(f"step {step}: ∫|Δe_x| {1e3 * running:.2f} mHa per electron")
            if step % config.checkpoint_every == 0 or step == config.steps:
                with log.open("a") as file:
                    file.write(json.dumps({"step": step, "train": {"l1": running}}) + "\n")
                state = {"step": step, "running": running, "config": settings, "data": checksum}
                save_checkpoint(checkpoint, network, [optimizer], state)

    weights = config.out / f"{config.name}.safetensors"
    result = {"steps": step, "l1_mha_per_electron": 1e3 * running}
    card = {
        "command": f"taufree train {path}",
        "training": settings,
        "start": origin(config.start) if config.start else None,
        "data": checksum,
        "systems": Counter(entry.kind for entry in learned.values()),
        "metrics": {"train": result},
    }
    save_model(weights, network, card, torch.half if config.half_precision else torch.float)
    return {**result, "weights": str(weights)}


def begin_from(path: Path, network: nn.Module) -> None:
    """Give a network the weights, or the function, of one of its kind that was trained before.

    Raises
    ------
    UserError
        That one has another architecture, and is not a narrower one of grid transformers.
    """
    start = load_comparator(path).network.cpu()
    of: Architecture = start.config  # type: ignore[assignment]
    wanted: Architecture = network.config  # type: ignore[assignment]
    if isinstance(network, ExpertTransformers):  # whatever the width
        of, wanted = (
            each.model_copy(update={"network": {**each.network, "width": 0}})
            for each in (of, wanted)
        )
    try:
        if of != wanted:
            raise ValueError("only transformers can be widened, and nothing else may differ")
        widen(start, network)
    except ValueError as error:
        raise UserError(
            f"{path} has another architecture than the network of this run: {error}."
        ) from error


def load_densities(config: ComparatorConfig, device: torch.device) -> list[Points]:
    """Spin channels of the converged densities whose ∇²ρ is known: the estimated τ needs it."""
    found = []
    for entry in entries_of(config.data, "train", config.kinds):
        path = config.data / entry.file
        for record in load_record(path, config.levels, ["converged"], entry.sha256):
            if record.lapl is None:
                continue
            record = with_parent(record, PARENTS[config.architecture.parent].xc)
            tau = record.density.n_spin * record.tau
            for channel, e, t in zip(channels(record), record.exc, tau, strict=True):
                held = channel[0] > RHO_THRESHOLD
                if held.any():
                    found.append(Points(*(x[held].to(device) for x in (*channel, e, t))))
    if not found:
        of = f" of {', '.join(config.kinds)}" if config.kinds else ""
        raise UserError(
            f"{config.data} holds no train densities{of}; run taufree data build first."
        )
    return found


def draw(
    config: ComparatorConfig, densities: list[Points], generator: torch.Generator
) -> tuple[Points, Tensor]:
    """Points of one density: a chunk of neighbours in its grid, or drawn by their energy.

    With the electrons that go to them: a density's, or a chunk's share of these by its points, so
    that chunks of the tail count as little as they do in E_x.
    """

    def pick(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    points = densities[pick(len(densities))]
    rho, weights = points.rho, points.weights
    electrons = weights @ rho
    if config.architecture.comparator == "expert_transformers":
        first = pick(max(1, len(rho) - config.points + 1))
        chosen = torch.arange(first, min(first + config.points, len(rho)), device=rho.device)
        electrons = electrons * len(chosen) / len(rho)
    else:
        energy = (weights * points.exc).abs()
        chance = energy / energy.sum() + (weights * rho).abs() / electrons
        random = torch.rand(config.points, generator=generator, dtype=torch.float64).to(rho.device)
        cumulative = chance.cumsum(0)  # to 2, or more where a grid has negative weights
        chosen = torch.searchsorted(cumulative, cumulative[-1] * random).clamp_max(len(rho) - 1)
        weights = cumulative[-1] * weights / (config.points * chance).clamp_min(1e-30)
    return Points(*(x[chosen] for x in points._replace(weights=weights))), electrons


def losses(
    network: nn.Module, points: Points, electrons: Tensor, generator: torch.Generator
) -> tuple[Tensor, float]:
    """What is minimized, and ∫|Δe_x| per electron on the points (Ha), which `draw` gave."""
    rho, grad_rho, _, weights, coords, exc, tau = points
    if isinstance(network, ExpertTransformers):
        return _expert_losses(network, points, electrons, generator)
    sigma = contracted_gradient(grad_rho)
    found = network(*(x.float() for x in (rho, sigma, weights * rho, coords))).double()
    parent = PARENTS[network.config.parent]  # type: ignore[union-attr, index]
    error = energy_density(parent, rho, sigma, found) - exc
    l1 = (weights * error.abs()).sum() / electrons
    bounded = [a / (1 + a) for a in (iso_orbital_indicator(rho, sigma, t) for t in (found, tau))]
    off = (weights * rho * (bounded[0] - bounded[1]).abs()).sum() / electrons
    return l1 + INDICATOR_WEIGHT * off, float(l1.detach())


def _expert_losses(
    network: ExpertTransformers,
    points: Points,
    electrons: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, float]:
    rho, grad_rho, tau, weights, coords, exc, _ = points
    lda, place = lda_exchange(rho), coords.float()
    features, partial = network.inputs(rho, grad_rho, tau, weights)
    scores = network.route(features, partial, place)
    if float(torch.rand((), generator=generator)) < RANDOM_ROUTES:
        chosen = torch.randint(N_EXPERTS, (len(rho),), generator=generator).to(rho.device)
    else:
        chosen = scores.argmax(1)
    error = network(features, place, chosen).double() * lda - exc
    l1 = (weights * error.abs()).sum() / electrons
    some = torch.randperm(len(rho), generator=generator)[: 1 + len(rho) // N_EXPERTS]
    asked = some.to(rho.device)
    with torch.no_grad():
        alone = [1 + expert(features[asked], place[asked]).squeeze(1) for expert in network.experts]
        best = (torch.stack(alone, 1) * lda[asked, None] - exc[asked, None]).abs().argmin(1)
    importance = (weights * lda).abs()[asked]
    surprise = nn.functional.cross_entropy(scores[asked], best, reduction="none").double()
    return l1 + (importance @ surprise) / importance.sum(), float(l1.detach())
