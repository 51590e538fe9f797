"""The training loop: draw, step, validate, checkpoint; the same on CPU, GPU and under torchrun."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.optim import Optimizer

from taufree.console import stderr
from taufree.data.splits import Split
from taufree.data.store import ReferenceDensity, iter_records, manifest_checksum, read_manifest
from taufree.data.summary import elements
from taufree.data.systems import registry
from taufree.errors import UserError
from taufree.model.network import Network
from taufree.model.storage import load_model, save_model
from taufree.training.checkpoint import load_checkpoint, save_checkpoint
from taufree.training.config import TrainingConfig, read_config
from taufree.training.losses import Losses
from taufree.training.plots import plot_learning_curve
from taufree.training.samples import Batch, Sample, draw, samples_of, scaled_record


def train(config_path: Path, *, resume: bool = True) -> dict[str, Any]:
    """Train as a TOML file says, from its last checkpoint if there is one.

    Every draw depends on seed, step and rank alone, and the checkpoint holds the optimizers'
    state, so an interrupted run goes on bit for bit on the same machine and thread count.

    Raises
    ------
    UserError
        Bad settings, no data, or a checkpoint of other settings.
    """
    config = read_config(config_path)
    fabric = Fabric(accelerator="auto", devices="auto" if torch.cuda.is_available() else 1)
    fabric.launch()
    torch.manual_seed(config.seed)
    losses = Losses(_network(config), config)
    optimizers = make_optimizers(losses.network, config)
    config.out.mkdir(parents=True, exist_ok=True)
    checkpoint, log = config.out / "checkpoint.safetensors", config.out / "log.jsonl"
    settings = config.model_dump(mode="json")
    step, running = 0, dict[str, float]()
    if resume and checkpoint.exists():
        state = load_checkpoint(checkpoint, losses.network, optimizers)
        if state["config"] != settings:
            raise UserError(
                f"{checkpoint} was made with other settings; name another out folder or remove it."
            )
        step, running = state["step"], state["running"]
        _truncate_log(log, step)
    else:
        log.unlink(missing_ok=True)
    train_set = load_samples(config, "train")
    chance, rank, n_ranks = chances(train_set, config.shares), fabric.global_rank, fabric.world_size
    validation_set = load_samples(config, "validation")

    module, *wrapped = fabric.setup(losses, *optimizers)
    with _progress(fabric.is_global_zero) as progress:
        task = progress.add_task("", total=config.steps, completed=step, note="")
        while step < config.steps:
            batch = draw_batch(step, train_set, chance, config, rank, n_ranks)
            set_learning_rate(wrapped, config.learning_rate * schedule(step, config))
            terms = module(batch)
            fabric.backward(terms["total"])
            torch.nn.utils.clip_grad_norm_(losses.parameters(), config.max_gradient)
            for optimizer in wrapped:
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            for key, value in terms.items():
                running[key] = 0.99 * running.get(key, value.item()) + 0.01 * value.item()
            progress.update(task, completed=step, note=f"L1 {running['l1'] * 1e3:.3f} mHa/e")
            if not fabric.is_global_zero:
                continue
            if step % config.validate_every == 0 or step == config.steps:
                errors = validate(losses, validation_set)
                with log.open("a") as file:
                    entry = {"step": step, "train": running, "validation": errors}
                    file.write(json.dumps(entry) + "\n")
                plot_learning_curve(log, config.out / "learning_curve.svg")
            if step % config.checkpoint_every == 0 or step == config.steps:
                state = {"step": step, "config": settings, "running": running}
                save_checkpoint(checkpoint, losses.network, optimizers, state)

    errors = json.loads(log.read_text().splitlines()[-1])["validation"]
    weights = config.out / f"{config.name}.safetensors"
    if fabric.is_global_zero:
        save_model(weights, losses.network, _card(config, config_path, errors))
    return {"steps": step, "weights": str(weights), "validation": errors}


def _network(config: TrainingConfig) -> Network:
    if config.start is None:
        return Network(config.model)
    network = Network(config.model)
    start = load_model(config.start).network
    if start.config.model_copy(update={"parent": config.model.parent}) != config.model:
        raise UserError(f"{config.start} has other sizes than the model of this run.")
    network.load_state_dict(start.state_dict())
    return network


def draw_batch(
    step: int,
    samples: list[Sample],
    chance: Tensor,
    config: TrainingConfig,
    rank: int = 0,
    n_ranks: int = 1,
) -> Batch:
    """The batch of a step, by the `chances` of the samples: it depends on seed, step and rank."""
    seed = (config.seed * 1_000_003 + step) * n_ranks + rank
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(chance, config.densities_per_step, True, generator=generator)
    picked = [samples[i] for i in chosen.tolist()]
    return draw(picked, config.points_per_density, config.model, generator)


def chances(samples: list[Sample], shares: dict[str, float]) -> Tensor:
    """Probability of each sample to be drawn, from the shares of the kinds of systems."""
    counts = Counter(sample.kind for sample in samples)
    weights = [shares.get(s.kind, 0.0) / counts[s.kind] if shares else 1.0 for s in samples]
    if not any(weights):
        raise UserError(f"shares name none of the kinds at hand: {', '.join(counts)}.")
    return torch.tensor(weights, dtype=torch.float64)


def make_optimizers(network: Network, config: TrainingConfig) -> list[Optimizer]:
    """Muon (orthogonalized momentum) for matrices, Adam for vectors and stacks of matrices."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for parameter in network.parameters():
        is_matrix = parameter.ndim == 2 and min(parameter.shape) > 1
        (matrices if is_matrix else others).append(parameter)
    rate = config.learning_rate
    muon = torch.optim.Muon(matrices, rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.Adam(others, rate, betas=(0.9, 0.99))]


def schedule(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then an exponential decay to a hundredth, and to zero at the very end.

    The noise of the draws, which is proportional to the rate, outweighs all else above a rate of
    1e-3; half of this schedule lies below a tenth of the first rate.
    """
    warm = min(1.0, (step + 1) / config.warmup_steps)
    end = min(1.0, (config.steps - step) / config.warmup_steps)
    return warm * end * 0.01 ** (step / config.steps)


def set_learning_rate(optimizers: list[Any], rate: float) -> None:
    """The same rate for every optimizer."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def load_samples(config: TrainingConfig, split: Split) -> list[Sample]:
    """Every density of a split on the configured grid levels, with what its tokens see."""
    with stderr.status(f"reading {split} densities"):
        samples = [
            sample
            for record in _records(config, split)
            for sample in samples_of(record, config.model)
        ]
    if not samples:
        raise UserError(f"{config.data} holds no {split} densities; run taufree data build first.")
    return samples


def _records(config: TrainingConfig, split: Split) -> Iterator[ReferenceDensity]:
    """Of a split; to train on, G2 densities of the coarsest grid once more, uniformly scaled."""
    for record in iter_records(config.data, split=split, levels=config.levels):
        if config.molecular_bases and record.density.lattice is None:
            if registry()[record.name].basis not in config.molecular_bases:
                continue
        yield record
        coarsest = record.grid_level == min(config.levels)
        if split == "train" and "scaled" in config.shares and record.kind == "g2" and coarsest:
            yield scaled_record(record)


@torch.no_grad()
def validate(losses: Losses, samples: list[Sample]) -> dict[str, float]:
    """Means over densities of |ΔE_x| and ∫|Δe_x| in mHa, on all their points."""
    energy: dict[str, float] = {}
    absolute: dict[str, float] = {}
    for sample in samples:
        batch = draw([sample], None, losses.network.config)
        error = (losses.exchange(batch)[0] - batch.exc) * batch.weights * sample.share * 1e3
        energy[sample.density] = energy.get(sample.density, 0.0) + error.sum().item()
        absolute[sample.density] = absolute.get(sample.density, 0.0) + error.abs().sum().item()
    return {
        "energy_error_mha": sum(map(abs, energy.values())) / len(energy),
        "l1_mha": sum(absolute.values()) / len(absolute),
    }


def _progress(visible: bool) -> Progress:
    note = TextColumn("{task.fields[note]}")
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, note, console=stderr, disable=not visible)


def _truncate_log(log: Path, step: int) -> None:
    """Drop what was logged after the checkpoint: those steps are run again."""
    lines = log.read_text().splitlines() if log.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    log.write_text("".join(line + "\n" for line in kept))


def _card(config: TrainingConfig, path: Path, errors: dict[str, float]) -> dict[str, Any]:
    git = ["git", "describe", "--always", "--dirty"]
    folder = Path(__file__).parent
    commit = subprocess.run(git, capture_output=True, text=True, check=False, cwd=folder)
    entries = read_manifest(config.data)
    return {
        "command": f"taufree train {path}",
        "training": config.model_dump(mode="json", exclude={"model"}),
        "commit": commit.stdout.strip() or "unknown",
        "data": manifest_checksum(entries),
        "elements": elements(entries, "train"),
        "date": time.strftime("%Y-%m-%d"),
        "metrics": {"validation": errors},
    }
