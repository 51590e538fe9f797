"""Densities ready for training: what the tokens see is known, grid points are drawn at random."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from taufree.data.reparent import with_parent
from taufree.data.store import ReferenceDensity
from taufree.functional import RHO_THRESHOLD
from taufree.model.attention import Bonds, bonds_between, make_bonds
from taufree.model.config import ModelConfig
from taufree.model.network import local_inputs, token_values
from taufree.model.tokens import TokenMap, images
from taufree.physics.descriptors import lda_exchange, reduced_gradient
from taufree.physics.parents import PARENTS

FACTORS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.25, 1.4, 1.7, 2.0)
"""λ of uniformly scaled densities."""
APART = 2.0**14
"""Distance (bohr) between the densities of a batch, which share one map: far out of reach, and a
power of two, so that the points of one density stay together along the curve that orders them."""


@dataclass(frozen=True)
class Sample:
    """One spin-unpolarized density: a closed shell's, or twice a spin channel's.

    All of length n_points unless noted. ``density`` names the density it is part of, and
    ``share`` is the weight of its energy there (1, or ½ for a spin channel).
    """

    density: str
    kind: str
    share: float
    electrons: float
    coords: Tensor  # (n_points, 3)
    tokens: Tensor  # (n_images,): which token each image is of
    positions: Tensor  # (n_images, 3)
    seen: Tensor  # (n_tokens, n_features, 2): what the tokens see
    bonds: Bonds
    local: Tensor  # (n_points, 4)
    p: Tensor
    lda: Tensor
    exc: Tensor  # the parent's energy per volume
    weights: Tensor
    probability: Tensor  # of a point to be drawn


def samples_of(record: ReferenceDensity, config: ModelConfig) -> Iterable[Sample]:
    """One sample for a closed shell, one for each occupied spin channel otherwise.

    The exchange to learn is that of the model's parent, whatever functional made the density.
    """
    record = with_parent(record, PARENTS[config.parent].xc)
    density = record.density
    scale = density.n_spin
    for spin in range(scale):
        rho = scale * density.rho[spin]
        held = rho > RHO_THRESHOLD
        if not held.any():
            continue
        rho, weights, coords = rho[held], density.weights[held], density.coords[held]
        grad_rho = scale * density.grad_rho[spin][held]
        s, lda = reduced_gradient(rho, grad_rho), lda_exchange(rho)
        tokens, positions = images(density.centers, density.lattice, coords, config.cutoff)
        token_map = TokenMap(config, coords, len(density.centers), tokens, positions)
        electrons = weights * rho
        energy = weights * lda
        probability = electrons / electrons.sum() + energy / energy.sum()
        yield Sample(
            density=f"{record.name} {record.density_kind} {record.grid_level}",
            kind=record.kind,
            share=1 / scale,
            electrons=float(electrons.sum()),
            coords=coords,
            tokens=tokens,
            positions=positions,
            seen=token_map.to_tokens(token_values(s, electrons).float()),
            bonds=bonds_between(density.centers, density.lattice, config.cutoff),
            local=local_inputs(rho, s).float(),
            p=(s * s).sum(1),
            lda=lda,
            exc=record.exc[spin][held],
            weights=weights,
            probability=(probability / 2).float().clamp_min(0),
        )


def scaled_record(record: ReferenceDensity) -> ReferenceDensity:
    """The same density uniformly scaled by one of `FACTORS`, always the same for one name.

    E_x[ρ_λ] = λE_x[ρ] holds for any parent that is a formula of p and α, and both are unchanged.
    """
    factor = FACTORS[zlib.crc32(record.name.encode()) % len(FACTORS)]
    return replace(
        record,
        kind="scaled",
        name=f"{record.name} scaled by {factor}",
        density=record.density.scaled(factor),
        exc=record.exc * factor**4,
    )


@dataclass(frozen=True)
class Batch:
    """Points drawn from several samples, in one row of tensors, read through one map.

    ``weights`` are w_j / (n q_j): sums over drawn points with them estimate integrals without bias.
    """

    samples: list[Sample]
    seen: Tensor
    bonds: Bonds
    token_map: TokenMap
    owner: Tensor  # (n_points,), index of the sample
    half: Tensor  # (n_points,), 0 or 1: two independent halves of each sample's draw
    local: Tensor
    p: Tensor
    lda: Tensor
    exc: Tensor
    weights: Tensor


def draw(
    samples: list[Sample],
    n_points: int | None,
    config: ModelConfig,
    generator: torch.Generator | None = None,
) -> Batch:
    """``n_points`` of each sample (all of them, with weights w_j, if None)."""
    picks = [_pick(s, n_points, generator) for s in samples]
    n_tokens = [len(s.seen) for s in samples]
    offsets = torch.tensor([0, *n_tokens]).cumsum(0).tolist()
    shifted = list(zip(samples, offsets, strict=False))
    bonds = make_bonds(
        torch.cat([s.bonds.to + o for s, o in shifted]),
        torch.cat([s.bonds.source + o for s, o in shifted]),
        torch.cat([s.bonds.squared_distance for s in samples]),
        config.cutoff,
    )
    moves = [torch.tensor([k * APART, 0, 0]) - s.coords.amin(0) for k, s in enumerate(samples)]
    token_map = TokenMap(
        config,
        torch.cat([s.coords[i] + m for s, m, (i, _) in zip(samples, moves, picks, strict=True)]),
        offsets[-1],
        torch.cat([s.tokens + o for s, o in shifted]),
        torch.cat([s.positions + m for s, m in zip(samples, moves, strict=True)]),
    )

    def gather(field: str) -> Tensor:
        return torch.cat([getattr(s, field)[i] for s, (i, _) in zip(samples, picks, strict=True)])

    return Batch(
        samples=samples,
        seen=torch.cat([s.seen for s in samples]),
        bonds=bonds,
        token_map=token_map,
        owner=torch.cat([torch.full_like(i, k) for k, (i, _) in enumerate(picks)]),
        half=torch.cat([torch.arange(len(i)) % 2 for i, _ in picks]),
        local=gather("local"),
        p=gather("p"),
        lda=gather("lda"),
        exc=gather("exc"),
        weights=torch.cat([w for _, w in picks]),
    )


def _pick(
    sample: Sample, n_points: int | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    if n_points is None:
        return torch.arange(len(sample.weights)), sample.weights
    index = torch.multinomial(sample.probability, n_points, replacement=True, generator=generator)
    return index, sample.weights[index] / (n_points * sample.probability[index].double())
