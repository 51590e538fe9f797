"""Networks that have learned nothing: the laws they obey must not depend on weights."""

from __future__ import annotations

from typing import Any

import torch

from taufree.functional import Functional
from taufree.model.config import ModelConfig
from taufree.model.network import Network


def random_network(
    *, roughness: float = 3.0, seed: int = 29, dtype: torch.dtype = torch.float64, **config: Any
) -> Network:
    """Seeded weights, ``roughness`` times PyTorch's own.

    At 3 and this seed, α̃ of a molecule spans decades and every expert is in use (there is a test
    of that): a law that holds here does not hold because the network is nearly constant. At 1,
    α̃ ≈ 1 and an SCF converges.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Network(ModelConfig(**config))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter *= roughness
    return network.to(dtype)


def random_functional(**options: Any) -> Functional:
    """A functional of a `random_network`."""
    return Functional(random_network(**options), name="random")


def random_rotation(generator: torch.Generator) -> torch.Tensor:
    """A proper rotation matrix, (3, 3) of float64."""
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    return q * torch.linalg.det(q)
