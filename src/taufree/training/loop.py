"""The training loop: draw, step, validate, checkpoint; the same on CPU, GPU and under torchrun."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.optim import Optimizer

from taufree.console import stderr
from taufree.data.store import Entry, manifest_checksum
from taufree.data.summary import elements
from taufree.errors import UserError
from taufree.model.network import Network
from taufree.model.storage import load_model, origin, save_model, weights_file
from taufree.training.checkpoint import load_checkpoint, save_checkpoint
from taufree.training.config import TrainingConfig, read_config
from taufree.training.draw import chances, draw_batch, draw_whole
from taufree.training.losses import Losses
from taufree.training.plots import learning_curve
from taufree.training.relaxation import Molecules, energy_errors
from taufree.training.samples import Densities
from taufree.training.sets import entries_to_read, load_curves, load_densities, load_molecules
from taufree.training.volumes import Curves, slope_error

CRYSTALS = ("crystals", "crystals-gth")
LOG_EVERY = 5
"""Steps between looks at the losses: each waits for the device. Odd, to see even and odd steps."""


def train(config_path: Path, *, resume: bool = True) -> dict[str, Any]:
    """Train as a TOML file says, from its last checkpoint if there is one.

    Every draw depends on seed, step and rank alone, and the checkpoint holds the optimizers'
    state, so an interrupted run goes on bit for bit on the same machine and thread count.

    Raises
    ------
    UserError
        Bad settings, no data, or a checkpoint of other settings or data.
    """
    config = read_config(config_path, TrainingConfig)
    fabric = make_fabric()
    fabric.launch()
    torch.manual_seed(config.seed)
    losses = Losses(_network(config), config)
    optimizers = make_optimizers(losses.network, config)
    config.out.mkdir(parents=True, exist_ok=True)
    first = fabric.is_global_zero
    checkpoint, log = config.out / "checkpoint.safetensors", config.out / "log.jsonl"
    settings = config.model_dump(mode="json")
    learned = {e.name: e for e in entries_to_read(config, "train")}
    checksum = manifest_checksum(learned)
    step, running = 0, dict[str, float]()
    if resume and checkpoint.exists():
        state = load_checkpoint(checkpoint, losses.network, optimizers)
        if state["config"] != settings:
            raise UserError(
                f"{checkpoint} was made with other settings; name another out folder or remove it."
            )
        if state["data"] != checksum:
            raise UserError(
                f"{checkpoint} was made with other data than {config.data} holds now; bring these "
                "back, name another out folder or remove the checkpoint."
            )
        step, running = state["step"], state["running"]
    if first:
        _truncate_log(log, step)
    fabric.barrier()
    train_set = load_densities(config, "train", fabric.device)
    chance, rank, n_ranks = chances(train_set, config.shares), fabric.global_rank, fabric.world_size
    validation_set = load_densities(config, "validation", fabric.device)
    molecules, validation_molecules = (
        load_molecules(config, split, fabric.device) for split in ("train", "validation")
    )
    curves, validation_curves = (
        load_curves(config, split, fabric.device) for split in ("train", "validation")
    )

    module, *wrapped = fabric.setup(losses, *optimizers)
    with _progress(first) as progress:
        task = progress.add_task("", total=config.steps, completed=step, note="")
        while step < config.steps:
            batch = draw_batch(step, train_set, chance, config, rank, n_ranks)
            set_learning_rate(wrapped, config.learning_rate * schedule(step, config))
            whole = draw_whole(step, molecules, curves, config, rank, n_ranks)
            terms = module(batch, *whole)
            fabric.backward(terms["total"])
            torch.nn.utils.clip_grad_norm_(losses.parameters(), config.max_gradient)
            for optimizer in wrapped:
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            validates = step % config.validate_every == 0 or step == config.steps
            if step % LOG_EVERY == 0 or validates:
                for key, value in terms.items():
                    running[key] = 0.9 * running.get(key, value.item()) + 0.1 * value.item()
                progress.update(task, completed=step, note=f"L1 {running['l1'] * 1e3:.3f} mHa/e")
            if not first:
                continue
            if validates:
                errors = validate(losses, validation_set, validation_molecules, validation_curves)
                with log.open("a") as file:
                    entry = {"step": step, "train": running, "validation": errors}
                    file.write(json.dumps(entry) + "\n")
                logged = [json.loads(line) for line in log.read_text().splitlines()]
                learning_curve(logged, config.name).savefig(config.out / "learning_curve.svg")
            if step % config.checkpoint_every == 0 or step == config.steps:
                state = {"step": step, "config": settings, "data": checksum, "running": running}
                save_checkpoint(checkpoint, losses.network, optimizers, state)

    fabric.barrier()  # the first process has written the log
    errors = json.loads(log.read_text().splitlines()[-1])["validation"]
    weights = config.out / f"{config.name}.safetensors"
    if first:
        save_model(weights, losses.network, _card(config, config_path, learned, errors))
    return {"steps": step, "weights": str(weights), "validation": errors}


def make_fabric() -> Fabric:
    """Every GPU there is, else one process; under ``torchrun`` as many as it has started."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return Fabric(accelerator="auto", devices="auto" if torch.cuda.is_available() else 1)
    # an expert that no drawn point goes to has no gradient in that process
    strategy = DDPStrategy(find_unused_parameters=True)
    return Fabric(accelerator="auto", devices=local, num_nodes=world // local, strategy=strategy)


def _network(config: TrainingConfig) -> Network:
    network = Network(config.model)
    if config.start is not None:
        start = load_model(config.start).network
        if start.config.model_copy(update={"parent": config.model.parent}) != config.model:
            raise UserError(f"{config.start} has other sizes than the model of this run.")
        network.load_state_dict(start.state_dict())
    return network


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


@torch.no_grad()
def validate(
    losses: Losses,
    densities: Densities,
    molecules: Molecules | None = None,
    curves: Curves | None = None,
) -> dict[str, float]:
    """Means of |ΔE_x| and ∫|Δe_x| in mHa over molecules, those in the small basis, and cells.

    Over ``molecules`` those of E_relax and of |ΔE_x − E_relax|, the self-consistent energy's error;
    over ``curves`` that of the error of their slopes, in mHa per atom.
    """
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)  # ΔE_x and ∫|Δe_x| of each density
    of_all = zip(densities.kinds, densities.names, densities.shares, strict=True)
    for k, (kind, name, share) in enumerate(of_all):
        batch = densities.whole(k)
        error = losses.error(batch) * batch.weights * share * 1e3
        sums = groups[kind if kind in (*CRYSTALS, "small") else "molecules"]
        sums[name] = sums.get(name, 0) + torch.stack([error.sum(), error.abs().sum()])
    errors: dict[str, float] = {}
    for group, sums in groups.items():
        means = torch.stack(list(sums.values())).abs().mean(0).tolist()
        errors |= zip((f"{group}_energy_error_mha", f"{group}_l1_mha"), means, strict=True)
    if molecules is not None:
        each = ([molecules[k]] for k in range(len(molecules)))
        found = [energy_errors(losses.network, m, create_graph=False) for m in each]
        e_x, relaxation = (1e3 * torch.cat(x) for x in zip(*found, strict=True))
        errors["relaxation_mha"] = relaxation.mean().item()
        errors["self_consistent_mha"] = (e_x - relaxation).abs().mean().item()
    if curves:
        ends = ((curve[0], curve[-1]) for curve in (curves[k] for k in range(len(curves))))
        slopes = [abs(slope_error(losses.network, *each).item()) for each in ends]
        errors["slope_mha"] = 1e3 * sum(slopes) / len(slopes)
    return errors


def _progress(visible: bool) -> Progress:
    note = TextColumn("{task.fields[note]}")
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, note, console=stderr, disable=not visible)


def _truncate_log(log: Path, step: int) -> None:
    """Drop what was logged after the checkpoint, at step 0 all: those steps are run again."""
    lines = log.read_text().splitlines() if log.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    log.write_text("".join(line + "\n" for line in kept))


def _card(
    config: TrainingConfig, path: Path, learned: dict[str, Entry], errors: dict[str, float]
) -> dict[str, Any]:
    """What made the weights, and those it started from."""
    return {
        "command": f"taufree train {path}",
        "training": config.model_dump(mode="json", exclude={"model"}),
        "start": origin(weights_file(config.start)) if config.start else None,
        "data": manifest_checksum(learned),
        "systems": Counter(entry.kind for entry in learned.values()),
        "elements": elements(learned, "train"),
        "pseudopotentials": elements(learned, "train", "crystals-gth"),
        "metrics": {"validation": errors},
    }
