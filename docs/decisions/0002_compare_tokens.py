"""The measurements behind 0002 and 0004: designs, optimizers, learning rates, sizes.

Tokens on nuclei (B) and Gaussian attention between points (A) feed the same local inputs and the
same experts, see the same G2 molecules of the training split (grid level 1), and take the same
number of steps with the same optimizers; errors are means over molecules of the validation split.
Nothing here sees the test split. Run: python 0002_compare_tokens.py DATA
"""

import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from taufree.data.splits import systems_of
from taufree.data.store import iter_records
from taufree.model.config import ModelConfig
from taufree.model.experts import Experts
from taufree.model.network import UNIFORM, Network
from taufree.physics.parents import PARENTS
from taufree.training.config import TrainingConfig
from taufree.training.loop import (
    chances,
    draw_batch,
    make_optimizers,
    schedule,
    set_learning_rate,
)
from taufree.training.losses import Losses
from taufree.training.samples import Sample, draw, samples_of

HEADS = (0.25, 0.5)  # the two broad heads that the design found enough
RATES = (3e-3, 1e-2, 2e-2)
ADAM = "B, Adam alone"
STEPS = 600
SUBSET = 1500  # query points of a training density in (A): all pairs would take an hour


def gaussian_attention(sample: Sample, queries: Tensor) -> Tensor:
    """(A): normalizer, mean t and ln ρ, and dipole along ∇ρ... of each head, (n_queries, 4 · 2)."""
    rho = (sample.lda / sample.lda.new_tensor(-0.75 * (3 / math.pi) ** (1 / 3))) ** 0.75
    measure = sample.weights * rho
    k_f2 = (3 * math.pi**2 * rho) ** (2 / 3)
    inverse_square = k_f2 * (1 + sample.p)
    t, ln_rho = local(sample)[:, 1].double(), torch.log(rho)
    out = []
    for i in queries.split(500):
        d2 = torch.cdist(sample.coords[i], sample.coords).square()
        columns = []
        for c in HEADS:
            kernel = measure * torch.exp(-c * inverse_square[i, None] * d2)
            total = kernel.sum(1).clamp_min(1e-30)
            a = c * inverse_square[i]
            shift = (kernel @ sample.coords) / total[:, None] - sample.coords[i]
            columns += [
                torch.log(((a / math.pi) ** 1.5 * total / rho[i]).clamp_min(1e-6)),
                (kernel @ t) / total,
                ((kernel @ ln_rho) / total - ln_rho[i]) / 4,
                a.sqrt() * shift.norm(dim=1),
            ]
        out.append(torch.stack(columns, 1))
    return torch.cat(out).float()


def local(sample: Sample) -> Tensor:
    """ln ρ and t = |u|², (n_points, 2)."""
    return torch.stack([sample.local[:, 0], (sample.local[:, 1:] ** 2).sum(1)], 1)


def train_a(samples: list[Sample], tests: list[Sample], config: TrainingConfig) -> None:
    """Experts on the features of (A)."""
    generator = torch.Generator().manual_seed(0)
    start = time.time()
    chosen = [torch.multinomial(s.probability, SUBSET, True, generator=generator) for s in samples]
    features = [gaussian_attention(s, i) for s, i in zip(samples, chosen, strict=True)]
    test_features = [gaussian_attention(s, all_points(s)) for s in tests]
    pairs = sum(len(s.weights) ** 2 for s in tests)
    print(f"(A) features: {time.time() - start:.0f} s, test pairs {pairs:.2e}", flush=True)
    for rate in RATES:
        fit_a(samples, tests, config, rate, chosen, features, test_features)


def fit_a(
    samples: list[Sample],
    tests: list[Sample],
    config: TrainingConfig,
    rate: float,
    chosen: list[Tensor],
    features: list[Tensor],
    test_features: list[Tensor],
) -> None:
    """Experts on the features of (A), at one learning rate."""
    torch.manual_seed(0)
    head = Experts(2 + 4 * len(HEADS), config.model)
    optimizers = make_optimizers(head, config)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)

    def exc(sample: Sample, index: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
        y, gates = head(torch.cat([local(sample)[index], read], 1))
        alpha = torch.nn.functional.softplus(UNIFORM + y).double()
        return sample.lda[index] * PARENTS["ms2"].enhancement(sample.p[index], alpha), gates

    start = time.time()
    for step in range(config.steps):
        set_learning_rate(optimizers, rate * schedule(step, config))
        for k in torch.randint(len(samples), (config.densities_per_step,), generator=generator):
            s, index = samples[k], chosen[k]
            pick = torch.randint(SUBSET, (config.points_per_density,), generator=generator)
            i = index[pick]
            e, gates = exc(s, i, features[k][pick])
            w = s.weights[i] / (len(i) * s.probability[i].double() * s.electrons)
            loss = ((e - s.exc[i]).abs() * w).sum()
            even = (gates.mean(0) - 1 / gates.shape[1]).square().sum()
            ((loss + config.balance_weight * even) / config.densities_per_step).backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), config.max_gradient)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    took = time.time() - start
    with torch.no_grad():
        errors = [
            (exc(s, i, f)[0] - s.exc) * s.weights
            for s, i, f in zip(tests, map(all_points, tests), test_features, strict=True)
        ]
    report(f"A, learning rate {rate}", errors, tests, took)


def all_points(sample: Sample) -> Tensor:
    """Indices of every grid point."""
    return torch.arange(len(sample.weights))


def train_b(samples: list[Sample], tests: list[Sample], config: TrainingConfig, label: str) -> None:
    """The network of the package."""
    torch.manual_seed(0)
    losses = Losses(Network(config.model), config)
    if label == ADAM:
        optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(losses.parameters())]
    else:
        optimizers = make_optimizers(losses.network, config)
    start = time.time()
    chance = chances(samples, config.shares)
    for step in range(config.steps):
        set_learning_rate(optimizers, config.learning_rate * schedule(step, config))
        losses(draw_batch(step, samples, chance, config))["total"].backward()
        torch.nn.utils.clip_grad_norm_(losses.parameters(), config.max_gradient)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    took = time.time() - start
    with torch.no_grad():
        batches = [draw([s], None, config.model) for s in tests]
        errors = [(losses.exchange(b)[0] - b.exc) * b.weights for b in batches]
    report(label, errors, tests, took)


def report(label: str, errors: list[Tensor], tests: list[Sample], took: float) -> None:
    """Mean |ΔE_x| and L1 per system (spin channels added), mHa."""
    names = sorted({s.density for s in tests})
    of = {
        n: [e * s.share for e, s in zip(errors, tests, strict=True) if s.density == n]
        for n in names
    }
    energy = sum(abs(sum(e.sum().item() for e in of[n])) for n in names) / len(names) * 1e3
    absolute = sum(sum(e.abs().sum().item() for e in of[n]) for n in names) / len(names) * 1e3
    print(f"{label}: |dE_x| {energy:.2f} mHa, L1 {absolute:.1f} mHa, {took:.0f} s", flush=True)


def main(folder: Path) -> None:
    """All variants on the same densities."""
    small = {
        split: [s.name for s in systems_of(split) if s.kind == "g2" and s.n_electrons <= limit]
        for split, limit in (("train", 26), ("validation", 26))
    }
    base = TrainingConfig(
        data=folder, out=folder, steps=STEPS, learning_rate=1e-2, energy_weight=0.0
    )
    sizes = base.model
    wide = {"min_exponent": 0.06, "n_radial": (13, 8, 8), "cutoff": 9.0}
    narrow = {"min_exponent": 0.12, "n_radial": (12, 4, 3), "cutoff": 6.5}

    def load(split: str, model: ModelConfig) -> list[Sample]:
        records = iter_records(folder, split, names=small[split], levels=[1])  # type: ignore[arg-type]
        return [s for r in records for s in samples_of(r, model)]

    train, tests = load("train", sizes), load("validation", sizes)
    print(f"{len(train)} densities to train on, {len(tests)} to test", flush=True)
    for rate in RATES:
        config = base.model_copy(update={"learning_rate": rate})
        train_b(train, tests, config, f"B, learning rate {rate}")
    train_b(train, tests, base.model_copy(update={"learning_rate": 3e-3}), ADAM)
    for label, change in (
        ("B, no encoder", {"n_layers": 0}),
        ("B, scalars only", {"n_directed": 0}),
        ("B, more and broader features", wide),
        ("B, fewer and shorter features", narrow),
    ):
        config = base.model_copy(update={"model": sizes.model_copy(update=change)})
        train_b(load("train", config.model), load("validation", config.model), config, label)
    train_a(train, tests, base)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
