"""The potential to train on, and its derivatives by the parameters, against double backward."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import grad

from networks import random_functional
from reference import OrbitalDensity
from taufree.functional import leaf
from taufree.training.potential import STEP, energy_and_potential


@pytest.fixture
def tiny() -> dict[str, object]:
    return {"n_radial": (4, 3, 2), "width": 8, "n_layers": 1, "n_read": 4, "n_mix": 2}


def test_it_is_the_derivative_of_the_reference_form(
    water: OrbitalDensity, tiny: dict[str, object], generator: torch.Generator
) -> None:
    functional, d = random_functional(**tiny), water.density
    geometry = functional.geometry(d.coords, d.centers)
    n, g = map(leaf, d.unpolarized[0])
    energy = d.weights * functional.energy_density(n, g, d.weights, geometry)
    potential = grad(energy.sum(), (n, g), create_graph=True)
    found = energy_and_potential(functional, n.detach(), g.detach(), d.weights, geometry)
    for ours, theirs in zip(found, (energy, *potential), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    parameters = list(functional.network.parameters())
    probes = [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in potential]
    slopes = [
        grad(sum((v * p).sum() for v, p in zip(vs, probes, strict=True)), parameters)
        for vs in (potential, found[1:])
    ]
    for theirs, ours in zip(*slopes, strict=True):
        size = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=STEP, atol=1e-6 * size)
