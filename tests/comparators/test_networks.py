"""Networks of others: their published sizes, and what they promise."""

from __future__ import annotations

import pytest
import torch

from taufree.comparators.expert_transformers import (
    ExpertTransformers,
    GridTransformer,
    angular_positions,
)
from taufree.comparators.linear_attention import LinearAttention
from taufree.comparators.widening import widen

PUBLISHED_EXPERT = 26e6  # parameters of one expert, doi:10.26434/chemrxiv-2025-mrgzj-v2
PUBLISHED_LINEAR = 650e3  # parameters, arXiv:2410.16408


def test_angular_positions_are_spherical_harmonics(generator: torch.Generator) -> None:
    r = torch.randn(100, 3, dtype=torch.float64, generator=generator)
    values = angular_positions(r)
    start = 1
    for l in range(4):  # the addition theorem: Σ_m Y_lm² = 1 with Y_00 = 1
        squares = values[:, start : start + 2 * l + 1].square().sum(1)
        assert torch.allclose(squares, torch.ones_like(squares))
        start += 2 * l + 1
    assert start == values.shape[1]


def test_published_numbers_of_parameters() -> None:
    def count(network: torch.nn.Module) -> int:
        return sum(p.numel() for p in network.parameters())

    with torch.device("meta"):
        assert count(LinearAttention()) == pytest.approx(PUBLISHED_LINEAR, rel=0.02)
        expert = GridTransformer(13, 1, width=512, n_layers=8, n_heads=8)
    assert count(expert) == pytest.approx(PUBLISHED_EXPERT, rel=0.02)


def test_every_point_goes_to_one_expert(generator: torch.Generator) -> None:
    network = ExpertTransformers(width=16, n_layers=1, n_heads=2, chunk=20).double()
    x = torch.rand(50, 9, dtype=torch.float64, generator=generator) + 0.1
    arguments = x[:, 0], x[:, 1:4], x[:, 4], x[:, 5], x[:, 6:]
    found = network.exchange(*arguments)
    chosen = found.chosen[:20]
    assert set(found.chosen.tolist()) <= {0, 1, 2, 3}
    features, _ = network.inputs(*(a[:20] for a in arguments[:4]))
    place = arguments[4][:20]
    whole = network(features, place, chosen)
    (own,) = torch.nonzero(chosen == chosen[0], as_tuple=True)
    alone = network(features[own], place[own], chosen[own])  # no other expert's points are seen
    torch.testing.assert_close(whole[own], alone)


def test_partial_derivatives_are_those_of_a_point_by_itself(generator: torch.Generator) -> None:
    """∂e_i by ρ_i, by the length of ∇ρ_i, and by τ_i; other points and the routing held."""
    network = ExpertTransformers(width=8, n_layers=1, n_heads=2).double().eval()
    x = torch.rand(12, 9, dtype=torch.float64, generator=generator) + 0.3
    rho, grad_rho, tau, weights, coords = x[:, 0], x[:, 1:4], x[:, 4] + 3, x[:, 5], x[:, 6:]
    found = network.exchange(rho, grad_rho, tau, weights, coords)
    h = 1e-5

    def energy(point: int, axis: int, step: float) -> float:
        moved = rho.clone(), grad_rho.clone(), tau.clone()
        moved[axis][point] *= 1 + step
        there = network.exchange(*moved, weights, coords, False)
        assert torch.equal(there.chosen, found.chosen)
        return there.exc[point].item()

    sigma = (grad_rho**2).sum(1)
    for axis, exact in enumerate((found.vrho * rho, 2 * found.vsigma * sigma, found.vtau * tau)):
        numeric = [(energy(i, axis, h) - energy(i, axis, -h)) / (2 * h) for i in range(len(rho))]
        assert exact.tolist() == pytest.approx(numeric, rel=1e-5, abs=1e-9)  # second order in h


def test_linear_attention_does_not_depend_on_the_order_of_points(
    generator: torch.Generator,
) -> None:
    network = LinearAttention(width=8, n_blocks=2).double()
    points = torch.rand(50, 6, dtype=torch.float64, generator=generator) + 0.1
    order = torch.randperm(50, generator=generator)
    tau = network(points[:, 0], points[:, 1], points[:, 2], points[:, 3:])
    shuffled = points[order]
    again = network(shuffled[:, 0], shuffled[:, 1], shuffled[:, 2], shuffled[:, 3:])
    assert torch.allclose(tau[order], again)
    assert (tau > 0).all()


def test_a_widened_network_says_the_same(generator: torch.Generator) -> None:
    """The same F_x, derivatives and routes; copies of a channel learn different things."""
    narrow, wide = (
        ExpertTransformers(width=width, n_layers=2, n_heads=2, chunk=50).double()
        for width in (8, 24)
    )
    widen(narrow, wide)
    x = torch.rand(50, 9, dtype=torch.float64, generator=generator) + 0.1
    arguments = x[:, 0], x[:, 1:4], x[:, 4], x[:, 5], x[:, 6:]
    before, after = (network.exchange(*arguments) for network in (narrow, wide))
    assert torch.equal(before.chosen, after.chosen)
    for name in ("exc", "vrho", "vsigma", "vtau"):
        assert torch.allclose(getattr(after, name), getattr(before, name), rtol=1e-10, atol=1e-13)

    features = torch.rand(50, 13, dtype=torch.float64, generator=generator)
    wide.experts[0](features, x[:, 6:]).sum().backward()
    slopes = wide.experts[0].embed.weight.grad  # type: ignore[union-attr]
    assert isinstance(slopes, torch.Tensor)
    assert (slopes[0] - slopes[1]).abs().max() > 0.01 * slopes.abs().max()

    between = ExpertTransformers(width=20, n_layers=2, n_heads=2, chunk=50).double()
    widen(narrow, between)  # two or three copies of each channel
    says = between.exchange(*arguments)
    off, spread = says.exc - before.exc, before.exc - before.exc.mean()
    assert off.norm() < 0.2 * spread.norm()
    with pytest.raises(ValueError, match="smaller"):
        widen(wide, narrow)
