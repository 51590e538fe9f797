"""What each part adds: the same short training with one part left out or changed.

Among the variants are the designs of 0002: points that read tokens on nuclei (B, the package's),
Gaussian attention between points (A), and both together. All see densities of ``KINDS`` on grid
level 1. Scores: errors at the densities of the test split, and self-consistent ones of the
prototype systems (the parent's from the folder SCF, as `taufree evaluate scf SCF` leaves them); of
"to choose by: NAME" the same of the validation split and its G2 molecules, on grid level 1; of
designs of 0002 errors of the validation split, how far E_x depends on the grid, and time.
Run: python docs/decisions/0014_ablation.py DATA SCF OUT.json [STEPS] [NAME ...], where a variant's
NAME may begin with "to choose by: " and end in ", second seed" or ", third seed".
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from pyscf import gto
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from taufree.data.generate import grid_record
from taufree.data.orbitals import factor
from taufree.data.splits import Split, split_of
from taufree.data.store import ReferenceDensity, entries_of, load_record
from taufree.data.systems import registry
from taufree.evaluation import scf
from taufree.evaluation.density import PROTOTYPE
from taufree.functional import Functional
from taufree.model import experts
from taufree.model.averages import N_SEEN
from taufree.model.config import ModelConfig
from taufree.model.experts import Experts
from taufree.model.network import UNIFORM, Network
from taufree.model.sight import see
from taufree.model.storage import load_model
from taufree.physics.descriptors import C_X, reduced_gradient
from taufree.quantities import GridDensity
from taufree.training import loop
from taufree.training.config import TrainingConfig, read_config
from taufree.training.draw import chances, draw_batch, draw_whole
from taufree.training.losses import Losses
from taufree.training.relaxation import Molecules
from taufree.training.samples import Densities, Family, Member, families_of, scaled_record
from taufree.training.sets import choose

KINDS = ("g2", "atoms", "ions", "diatomics", "molecules", "small", "stretched", "crystals")
PEROXIDE = registry()["H2O2"]
BASE = {
    "start": None, "learning_rate": 1e-2, "warmup_steps": 100, "levels": (1,),
    "relaxation_weight": 0.0, "slope_weight": 0.0,
}  # fmt: skip
"""As the first of the runs that make the package's weights: a step with whole molecules, as in the
later ones, costs several times as much."""


class SeesAll(Network):
    """The same network with a router that also sees what points read from tokens (0018)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        n_inputs = 2 + config.n_read + 4 * config.n_directed + N_SEEN
        with patch.object(experts, "N_LOCAL", n_inputs):
            self.experts = Experts(n_inputs, config)
        self.experts.gates = self.gates_of_all  # type: ignore[method-assign]

    def gates_of_all(self, x: Tensor) -> Tensor:
        """`Experts.gates` of all inputs."""
        with patch.object(experts, "N_LOCAL", x.shape[1]):
            return Experts.gates(self.experts, x)


@torch.no_grad()
def blind(network: Network, to: Collection[str]) -> None:
    """Make points blind to "tokens", or to "averages" of the density (0019).

    The weights that let them see are zero: so they stay if this is called after every step.
    """
    if "tokens" in to:
        answers = [*network.scalars.parameters(), *network.tensors.parameters()]
        for parameter in [*answers, *network.spread]:
            parameter.zero_()
    if "averages" in to:
        for expert in network.experts.experts:
            expert[0].weight[:, -N_SEEN:] = 0.0


HEADS = (0.25, 0.5)  # c of design (A): the two broad heads that its prototype found enough
KNOWN: dict[int, tuple[Member, Family]] = {}  # of two variants: made once
G2 = {"converged": True, "only": ("g2",), "most_points": 13_000, "split": "validation"}
"""(A) sums over all pairs of points: small molecules. A choice is not made on the test split."""


class Pairs(Network):
    """Averages as sums over all pairs of points (A), beside what points read of tokens (B)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        n_read = config.n_read + 4 * config.n_directed
        self.experts = Experts(2 + n_read + 4 * len(HEADS), config)


class PairsAlone(Pairs):
    """(A) alone."""

    def head(self, local: Tensor, f: Tensor, averages: Tensor) -> tuple[Tensor, Tensor]:
        x = see(local, 0 * f, self.config.n_directed)
        y, gate = self.experts(torch.cat([x, averages], 1))
        return torch.nn.functional.softplus(UNIFORM + y), gate


def with_pairs(family: Family) -> Family:
    """The family's first density, with the outputs of each head of (A) as its averages."""
    (member,) = family.members[:1]
    if id(member) in KNOWN:
        return KNOWN[id(member)][1]
    p, lda = member.known[:, 0].double(), member.known[:, 1].double()
    rho = ((lda / C_X) ** 0.75).clamp_min(1e-12)
    sums = gaussian_sums(rho, p, family.coords.double(), family.weights)
    found = replace(family, members=[replace(member, averages=sums.float())])
    KNOWN[id(member)] = member, found
    return found


def gaussian_sums(rho: Tensor, p: Tensor, coords: Tensor, weights: Tensor) -> Tensor:
    """What each head of (A) gives to each point, (n_points, 4 n_heads).

    K(i, j) = w_j ρ_j exp(−c A_i |r_i − r_j|²), A = k_F²(1 + s²): its normalizer, means of t and
    ln ρ, and the length of its dipole.
    """
    inverse_square = (3 * math.pi**2 * rho) ** (2 / 3) * (1 + p)
    t, ln_rho = p / (1 + p), torch.log(rho)
    values = torch.stack([torch.ones_like(t), t, ln_rho, *coords.T], 1) * (weights * rho)[:, None]

    distance = coords.square().sum(1)

    def rows(i: Tensor) -> Tensor:
        square = torch.addmm(distance, coords[i], coords.T, alpha=-2) + distance[i, None]
        columns = []
        for c in HEADS:
            a = c * inverse_square[i]
            sums = torch.exp(-a[:, None] * square).clamp_min(1e-30) @ values  # none subnormal
            total = sums[:, 0].clamp_min(1e-30)
            mean = sums[:, 1:] / total[:, None]
            columns += [
                torch.log(((a / math.pi) ** 1.5 * total / rho[i]).clamp_min(1e-6)),
                mean[:, 0],
                (mean[:, 1] - ln_rho[i]) / 4,
                a.sqrt() * ((mean[:, 2:] - coords[i]).square().sum(1) + 1e-12).sqrt(),
            ]
        return torch.stack(columns, 1)

    blocks = torch.arange(len(rho), device=rho.device).split(1 + 2_000_000 // len(rho))
    return torch.cat([checkpoint(rows, i, use_reentrant=False) for i in blocks])


def peroxide(turn: int, level: int) -> ReferenceDensity:
    """H2O2's Hartree-Fock density, which knows no grid, turned at random (0: not) on a grid."""
    turned = np.array(PEROXIDE.positions)
    if turn:
        turned = turned @ Rotation.random(random_state=turn).as_matrix()
    atoms = list(zip(PEROXIDE.symbols, turned, strict=True))
    mol = gto.M(atom=atoms, unit="Bohr", basis="def2-svp", verbose=0)
    mf = mol.RHF().density_fit().run(conv_tol=1e-11)
    factors = [factor(np.asarray(mf.make_rdm1()))]
    fields = {k: torch.tensor(v) for k, v in grid_record(mf, factors, level, "MS2")[0].items()}
    keys = [f.name for f in dataclasses.fields(GridDensity) if f.name in fields]
    density = GridDensity(**{k: fields.pop(k) for k in keys}, centers=torch.tensor(turned))
    return ReferenceDensity(
        density=density, **fields, name="H2O2", formula="H2O2", kind="g2", parent="MS2",
        numbers=tuple(mol.atom_charges()), charge=0, core_electrons=0, spin=0, grid_level=level,
        density_kind="converged", e_tot=0.0,
    )  # fmt: skip


@torch.no_grad()
def discretization(losses: Losses, pairs: bool) -> dict[str, float]:
    """How far E_x of H2O2 depends on its grid beyond the parent, mHa, and µs a grid point."""

    def e_x(turn: int, level: int) -> tuple[float, float]:
        record = peroxide(turn, level)
        (family,) = families_of([record], losses.network.config)
        family = with_pairs(family) if pairs else family
        batch = Densities([family], losses.network.config.cutoff, "cpu").whole(0)
        parent = record.e_x.item()
        return parent + (losses.error(batch) * batch.weights).sum().item(), parent

    def beyond(one: tuple[float, float], other: tuple[float, float]) -> float:
        return 1e3 * (abs(one[0] - other[0]) - abs(one[1] - other[1]))

    coarse, fine = e_x(0, 1), e_x(0, 3)
    return {
        "turned_level_1": max(beyond(e_x(k, 1), coarse) for k in (1, 2, 3)),
        "turned_level_3": max(beyond(e_x(k, 3), fine) for k in (1, 2, 3)),
        "levels_1_to_3": beyond(fine, coarse),
    }


def seconds_per_point(network: Network, pairs: bool) -> float:
    """Of energy and potential on H2O2 at grid level 1, µs; of (A) the sums over pairs alone."""
    d = peroxide(0, 1).density
    if not pairs:
        functional = Functional(Network(network.config), "times only")
        geometry = functional.geometry(d.coords, d.centers)
        fields = d.rho[0], d.grad_rho[0], d.weights
        return 1e6 * _time(lambda: functional.potential(*fields, geometry)) / len(d.weights)
    rho, coords, weights = (x.float() for x in (d.rho[0], d.coords, d.weights))
    s = reduced_gradient(d.rho[0], d.grad_rho[0])

    def both_ways() -> None:
        inputs = rho.requires_grad_(), (s * s).sum(1).float().requires_grad_()
        gaussian_sums(*inputs, coords, weights).sum().backward()

    return 1e6 * _time(both_ways) / len(d.weights)


def _time(call: Callable[[], object]) -> float:
    """The median of three, in seconds, after one that compiles."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


BUNDLED = {"start": "ms2", "training": {"learning_rate": 4e-3}}
"""From the weights of the package, at the rate of the last run that made them."""
TO_CHOOSE_BY = "to choose by: "

VARIANTS: dict[str, dict[str, Any]] = {
    "the package's": {},
    "local": {"blind": ("tokens", "averages")},
    "local, equal size": {"blind": ("tokens", "averages"), "model": {"expert_width": 169}},
    "no tokens": {"blind": ("tokens",)},
    "no attention between tokens": {"model": {"n_layers": 0}},
    "one dense expert, equal cost": {"model": {"n_experts": 1}},
    "one dense expert, equal size": {"model": {"n_experts": 1, "expert_width": 122}},
    "with response loss": {"training": {"response_weight": 1.0}},
    "with relaxation loss": {"training": {"relaxation_weight": 20.0}},
    "no derivative loss": {"training": {"derivative_weight": 0.0}},
    "converged densities only": {"converged": True},
    "no crystals": {"without": ("crystals",)},
    "no averages": {"blind": ("averages",)},
    "G2 only, converged: the package's": G2,
    "G2 only, converged: tokens (B)": {**G2, "blind": ("averages",)},
    "G2 only, converged: points (A)": {**G2, "network": PairsAlone, "pairs": True},
    "G2 only, converged: (A) and (B)": {**G2, "network": Pairs, "pairs": True},
    "G2 only, converged: router sees all": {**G2, "network": SeesAll},
    "G2 only, converged: one dense expert": {**G2, "model": {"n_experts": 1}},
    "the bundled weights, trained on": BUNDLED,
    "the bundled weights without encoder, trained on": {**BUNDLED, "model": {"n_layers": 0}},
    "one encoder layer": {"model": {"n_layers": 1}},
    "one head": {"model": {"n_heads": 1}},
    "12 scalars read instead of 24": {"model": {"n_read": 12}},
    "2 tensors read instead of 8": {"model": {"n_directed": 2}},
}
SEEDS = {"second seed": 1, "third seed": 2}


def variant_of(name: str) -> dict[str, Any]:
    """The variant of a name, which may begin with "to choose by: " and end in ", second seed"."""
    if name.startswith(TO_CHOOSE_BY):
        return {**variant_of(name.removeprefix(TO_CHOOSE_BY)), "split": "validation"}
    base, _, last = name.rpartition(", ")
    if last not in SEEDS:
        return VARIANTS[name]
    training = {**VARIANTS[base].get("training", {}), "seed": SEEDS[last]}
    return {**VARIANTS[base], "training": training}


def load(
    folder: Path, config: TrainingConfig, split: Split, kinds: Collection[str]
) -> list[Family]:
    """All families of some kinds of systems of a split."""
    found: list[Family] = []
    for entry in entries_of(folder, split):
        if entry.kind not in kinds:
            continue
        records = load_record(folder / entry.file, config.levels, sha256=entry.sha256)
        if split == "train":
            records = choose(records, config.densities_per_system, config.seed)
        found += families_of(records, config.model)
        if split == "train" and entry.kind == "g2":
            first = next(r for r in records if r.density_kind == "converged")
            found += families_of([scaled_record(first)], config.model)
    return found


def run(
    variant: dict[str, Any],
    config: TrainingConfig,
    train: list[Family],
    test: list[Family],
    energies: Path,
) -> dict[str, float]:
    """Train one variant and score it."""
    model = config.model.model_copy(update=variant.get("model", {}))
    changes = {**variant.get("training", {}), "model": model}
    config = config.model_copy(update=changes)
    kinds = set(variant.get("only", {f.kind for f in train}))
    train = [f for f in train if f.kind in kinds - set(variant.get("without", ()))]
    test = [f for f in test if f.kind in kinds - {"small"}]
    if most := variant.get("most_points"):
        train, test = ([f for f in each if len(f.weights) <= most] for each in (train, test))
    if variant.get("converged"):
        train = [replace(f, members=f.members[:1]) for f in train]
    if pairs := variant.get("pairs", False):
        train, test = ([with_pairs(f) for f in each] for each in (train, test))
    densities = Densities(train, model.cutoff, "cpu")
    shares = {k: v for k, v in config.shares.items() if k in set(densities.kinds)}
    chance = chances(densities, shares)
    torch.manual_seed(config.seed)
    losses = Losses(variant.get("network", Network)(model), config)
    if start := variant.get("start"):
        weights = load_model(start).network.state_dict()
        known = losses.network.state_dict().keys()
        losses.network.load_state_dict({k: v for k, v in weights.items() if k in known})
    optimizers = loop.make_optimizers(losses.network, config)
    molecules = None
    if config.relaxation_weight and not variant.get("converged"):
        molecules = Molecules(config.data, "train", 1, model.parent, config.relaxation_atoms)
        molecules.prepare(torch.device("cpu"))
    hidden = variant.get("blind", ())
    blind(losses.network, hidden)
    start = time.perf_counter()
    for step in range(config.steps):
        batch = draw_batch(step, densities, chance, config)
        loop.set_learning_rate(optimizers, config.learning_rate * loop.schedule(step, config))
        whole = draw_whole(step, molecules, None, config)
        losses(batch, *whole)["total"].backward()
        torch.nn.utils.clip_grad_norm_(losses.parameters(), config.max_gradient)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        blind(losses.network, hidden)
    seconds = time.perf_counter() - start
    scores = {"seconds": seconds, **score(losses, Densities(test, model.cutoff, "cpu"))}
    if "only" in variant:
        scores |= discretization(losses, pairs)
        scores["us_a_point"] = seconds_per_point(losses.network, pairs)
    else:
        scores |= self_consistent(losses.network, energies, variant.get("split", "test"))
    return scores


def self_consistent(network: Network, energies: Path, split: Split) -> dict[str, float]:
    """Mean |ΔE_total| of the prototype systems, and how many of them converged.

    Of the validation split: of its G2 molecules, on grid level 1.
    """
    systems, level = [registry()[name] for name in PROTOTYPE], 3
    if split == "validation":
        g2 = [s for s in registry().values() if s.kind == "g2"]
        systems, level = [s for s in g2 if split_of(s.formula) == split], 1
    functional = Functional(network.eval(), "variant")
    result = scf.evaluate(functional, out=energies, systems=systems, level=level, workers=1)
    result = result["summary"]
    return {
        "scf_energy": result["mean_de_total_mha"],
        "scf_converged": result["converged"],
        "scf_cycles": result["median_cycles"],
    }


@torch.no_grad()
def score(losses: Losses, densities: Densities) -> dict[str, float]:
    """Mean |ΔE_x| and L1 in mHa: molecules, the eight prototype systems, SCF cycles, crystals."""
    energy: dict[tuple[str, int], float] = {}
    absolute: dict[tuple[str, int], float] = {}
    electrons: dict[str, float] = {}
    for k, name in enumerate(densities.names):
        for which in range(densities.member_ranges.counts[k]):
            batch = densities.whole(k, which)
            error = losses.error(batch) * batch.weights * densities.shares[k] * 1e3
            key = name, which
            energy[key] = energy.get(key, 0.0) + error.sum().item()
            absolute[key] = absolute.get(key, 0.0) + error.abs().sum().item()
            if which == 0:
                total = batch.electrons.item() * densities.shares[k]
                electrons[name] = electrons.get(name, 0.0) + total
    solid = {n for n, k in zip(densities.names, densities.kinds, strict=True) if "crystal" in k}
    molecules = [n for n in electrons if n not in solid]
    eight = [f"{name} 1" for name in PROTOTYPE if f"{name} 1" in electrons]
    moved = [key for key in energy if key[1] > 0 and key[0] not in solid]

    def mean(values: Any) -> float:
        values = list(values)
        return sum(values) / len(values) if values else float("nan")

    return {
        "molecules_energy": mean(abs(energy[n, 0]) for n in molecules),
        "molecules_l1": mean(absolute[n, 0] for n in molecules),
        "prototype_energy": mean(abs(energy[n, 0]) for n in eight),
        "prototype_l1": mean(absolute[n, 0] for n in eight),
        "moved_energy": mean(abs(energy[key]) for key in moved),
        "moved_change": mean(abs(energy[key] - energy[key[0], 0]) for key in moved),
        "crystals_l1_per_electron": mean(absolute[n, 0] / electrons[n] for n in solid),
    }


def main() -> None:
    """Train and score every variant; results are written after each."""
    folder, energies, out = map(Path, sys.argv[1:4])
    steps = int(sys.argv[4]) if len(sys.argv) > 4 else 2000
    base = {**BASE, "steps": steps, "data": folder}
    config = read_config(Path("configs/ms2-pseudo.toml"), TrainingConfig).model_copy(update=base)
    results = json.loads(out.read_text()) if out.exists() else {}
    asked = sys.argv[5:] or VARIANTS
    variants = {name: variant_of(name) for name in asked if name not in results}
    for split in ("validation", "test"):
        chosen = {k: v for k, v in variants.items() if v.get("split", "test") == split}
        kinds = {kind for variant in chosen.values() for kind in variant.get("only", KINDS)}
        splits: tuple[Split, Split] = ("train", split)
        train, test = (load(folder, config, s, kinds) for s in splits)
        for name, variant in chosen.items():
            results[name] = run(variant, config, train, test, energies)
            out.write_text(json.dumps(results, indent=1))
            print(name, json.dumps(results[name]), flush=True)


if __name__ == "__main__":
    main()
