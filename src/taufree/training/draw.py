"""What each step sees: every draw depends on seed, step and rank alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from taufree.training.config import TrainingConfig
from taufree.training.relaxation import Molecule, Molecules
from taufree.training.samples import Batch, Densities
from taufree.training.volumes import Crystal, Curves

Chance = NDArray[np.float64]
CRYSTALS_EVERY = 2
"""Steps: the others see whole molecules."""


def draw_batch(
    step: int,
    densities: Densities,
    chance: Chance,
    config: TrainingConfig,
    rank: int = 0,
    n_ranks: int = 1,
) -> Batch:
    """The batch of a step, by the `chances` of the families: it depends on seed, step and rank."""
    seed = (config.seed * 1_000_003 + step) * n_ranks + rank
    rng = np.random.default_rng(seed)
    families = rng.choice(len(densities), config.densities_per_step, p=chance)
    return densities.draw(families, config.points_per_density, seed)


def draw_whole(
    step: int,
    molecules: Molecules | None,
    curves: Curves | None,
    config: TrainingConfig,
    rank: int = 0,
    n_ranks: int = 1,
) -> tuple[list[Molecule], tuple[Crystal, Crystal] | None]:
    """The whole molecules of a step, or two volumes of a crystal.

    They depend on seed, step and rank.
    """
    rng = np.random.default_rng([config.seed, step, rank, n_ranks])
    if curves and step % CRYSTALS_EVERY == 0:
        curve = curves[int(rng.integers(len(curves)))]
        one, other = sorted(rng.choice(len(curve), 2, replace=False))
        return [], (curve[one], curve[other])
    if not molecules:
        return [], None
    chance = chances(molecules, config.shares)
    drawn = rng.choice(len(molecules), config.molecules_per_step, p=chance)
    return [molecules[k] for k in drawn], None


def chances(systems: Densities | Molecules, shares: dict[str, float]) -> Chance:
    """Probability of each to be drawn, from the shares of the kinds of systems."""
    counts = Counter(systems.kinds)
    weights = [shares.get(k, 0.0) / counts[k] if shares else 1.0 for k in systems.kinds]
    return np.array(weights) / sum(weights)
