"""Averages of the density around each grid point: against quadrature, and their derivatives."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite import hermgauss
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck

from networks import random_rotation
from reference import OrbitalDensity
from taufree.functional import Functional
from taufree.model import tokens
from taufree.model.averages import (
    HEADS,
    N_SEEN,
    averaged,
    averaged_block_plainly,
    fit,
    normalizer,
    see_averages,
    see_averages_plainly,
    widths,
)
from taufree.model.config import ModelConfig
from taufree.model.network import Network, token_values
from taufree.model.tokens import TokenMap, gaussian_features, images
from taufree.physics.descriptors import reduced_gradient
from tolerances import ROUNDING, SUM_ROUNDING

FAR = ModelConfig(min_exponent=0.02, cutoff=21.0, n_radial=(6, 4, 3))
"""C(d) is nearly flat where points and tokens of these tests are."""


def random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def scene(
    generator: torch.Generator, config: ModelConfig, n_points: int = 150
) -> tuple[TokenMap, Tensor, Tensor]:
    """Points and three tokens, a density in their Gaussians, and widths of two heads."""
    coords, centers = random(generator, n_points, 3), random(generator, 3, 3)
    token_map = TokenMap(config, coords, 3, torch.arange(3), centers)
    b = torch.exp(random(generator, n_points, 2))
    return token_map, random(generator, 3, config.n_features), b


def test_it_is_the_average_under_a_gaussian(generator: torch.Generator) -> None:
    token_map, q, b = scene(generator, FAR, n_points=5)
    x, weight = hermgauss(30)
    steps = torch.tensor(np.stack(np.meshgrid(x, x, x), -1).reshape(-1, 3))
    share = torch.tensor(np.prod(np.meshgrid(weight, weight, weight), axis=0).ravel())
    found = averaged(token_map, q, b).unflatten(1, (2, 4))
    coords = token_map.points.mT.flatten(0, 1)[torch.argsort(token_map.order)]
    for i, head in np.ndindex(5, 2):
        around = coords[i] + steps / b[i, head].sqrt()
        r = (around - token_map.position[:3, None]).mT
        fade = (1 - (r * r).sum(1) / FAR.cutoff**2) ** 3  # features without it, times it at r
        phi = gaussian_features(r, FAR) / fade[:, None]
        here = (coords[i] - token_map.position[:3]).square().sum(1)
        faded = q * (1 - here / FAR.cutoff**2)[:, None] ** 3
        mean = torch.einsum("af,afp,p->", faded, phi, share / math.pi**1.5)
        assert found[i, head, 0].item() == pytest.approx(mean.item(), rel=1e-6, abs=1e-8)


def test_slope_is_that_of_the_average(generator: torch.Generator) -> None:
    """But for C(d), which counts as constant."""
    sizes = {"min_exponent": 5e-7, "cutoff": 4000.0, "n_radial": (22, 21, 20)}
    config = ModelConfig(**sizes)
    token_map, q, b = scene(generator, config, n_points=20)
    coords = token_map.points.mT.flatten(0, 1)[torch.argsort(token_map.order)][:20]
    h, numeric = 1e-3, []
    for step in h * torch.eye(3, dtype=torch.float64):
        ends = (
            TokenMap(config, coords + s * step, 3, torch.arange(3), token_map.position[:3])
            for s in (1, -1)
        )
        up, down = (averaged(end, q, b).unflatten(1, (2, 4))[..., 0] for end in ends)
        numeric.append((up - down) / (2 * h))
    slope = averaged(token_map, q, b).unflatten(1, (2, 4))[..., 1:]
    torch.testing.assert_close(slope, torch.stack(numeric, 2), rtol=1e-4, atol=1e-5)


def test_compiled_form_is_the_plain_one(generator: torch.Generator) -> None:
    token_map, q, b = scene(generator, ModelConfig())
    q.requires_grad_()
    b.requires_grad_()
    d_average = random(generator, 150, 8)
    ((points, tiles),) = token_map.blocks()
    plain = averaged_block_plainly(token_map, q, b[points], tiles)[torch.argsort(points)]
    compiled = averaged(token_map, q, b)
    torch.testing.assert_close(compiled, plain, rtol=ROUNDING, atol=ROUNDING)
    for ours, theirs in zip(
        grad(compiled, (q, b), d_average), grad(plain, (q, b), d_average), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=SUM_ROUNDING, atol=SUM_ROUNDING)


def test_derivatives_to_second_order(generator: torch.Generator) -> None:
    config = ModelConfig(n_radial=(3, 2, 1))
    token_map, q, b = scene(generator, config, n_points=4)
    variables = q.requires_grad_(), b.requires_grad_()
    assert gradcheck(partial(averaged, token_map), variables)
    assert gradgradcheck(partial(averaged, token_map), variables)


def test_averages_of_water_are_those_of_its_grid(water: OrbitalDensity) -> None:
    """Sums over pairs of points, where the grid is fine enough for the kernel.

    The density in Gaussians is a rough one, so that they are near each other, not the same.
    """
    config, d = ModelConfig(), water.density
    rho, grad_rho = d.unpolarized[0]
    token_map = Functional(Network(config)).geometry(d.coords, d.centers).token_map
    s = reduced_gradient(rho, grad_rho)
    values = token_values(s, d.weights * rho, normalizer(token_map))
    b, q = widths(rho, s), fit(token_map.to_tokens(values)[..., 2:], config)
    averages = averaged(token_map, q, b).unflatten(1, (-1, 4))[..., 0]
    chosen = ((rho > 0.01) & (rho < 0.3)).nonzero()[::29, 0]
    distance = (d.coords[chosen, None] - d.coords).square().sum(2)
    for head in range(len(HEADS)):
        width = b[chosen, head, None]
        kernel = (width / math.pi) ** 1.5 * torch.exp(-width * distance)
        error = (averages[chosen, head] / (kernel @ (d.weights * rho)) - 1).abs()
        assert error.median() < 0.15
        moved = (rho[chosen] / (kernel @ (d.weights * rho)) - 1).abs()
        assert moved.median() > 2 * error.median()  # else ρ itself would do as well


def test_what_experts_see_does_not_turn(generator: torch.Generator) -> None:
    rho, b = torch.exp(random(generator, 20)), torch.exp(random(generator, 20, len(HEADS)))
    s, average = random(generator, 20, 3), random(generator, 20, len(HEADS), 4)
    turn = random_rotation(generator)
    turned = torch.cat([average[..., :1], average[..., 1:] @ turn.T], 2)
    before = see_averages(average.flatten(1), rho, s, b)
    after = see_averages(turned.flatten(1), rho, s @ turn.T, b)
    assert before.shape == (20, N_SEEN)
    torch.testing.assert_close(after, before, rtol=ROUNDING, atol=ROUNDING)


def test_compiled_sight_is_the_plain_one(generator: torch.Generator) -> None:
    rho, b = torch.exp(random(generator, 9)), torch.exp(random(generator, 9, len(HEADS)))
    s, average = random(generator, 9, 3), random(generator, 9, 4 * len(HEADS))
    inputs = [x.requires_grad_() for x in (average, rho, s, b)]
    u = s / (1 + (s * s).sum(1, keepdim=True)).sqrt()
    seen, plainly = see_averages(*inputs), see_averages_plainly(average, rho, u, b)
    torch.testing.assert_close(seen, plainly, rtol=ROUNDING, atol=ROUNDING)
    assert gradcheck(see_averages, inputs)
    assert gradgradcheck(see_averages, inputs)


def test_a_density_far_from_all_tokens_is_finite() -> None:
    """No token in reach: ρ̄ = 0, and nothing diverges."""
    rho, s = torch.tensor([1e-9, 1.0, 1e6]).double(), torch.zeros(3, 3, dtype=torch.float64)
    s[:, 0] = torch.tensor([1e5, 0.0, 1e3])
    rho.requires_grad_()
    for value in (0.0, -1e9):  # or where a fit is negative
        average = torch.full((3, 4 * len(HEADS)), value, dtype=torch.float64)
        for form in (see_averages, plain_form):
            seen = form(average, rho, s, widths(rho, s))
            (slope,) = grad(seen.sum(), rho)
            assert seen.isfinite().all() and slope.isfinite().all()


def plain_form(average: Tensor, rho: Tensor, s: Tensor, b: Tensor) -> Tensor:
    return see_averages_plainly(average, rho, s / (1 + (s * s).sum(1, keepdim=True)).sqrt(), b)


def test_blocks_without_tokens_in_reach(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some blocks see no token; in a crystal a token is at many places."""
    monkeypatch.setattr(tokens, "BLOCK", 1)
    coords = torch.cat([random(generator, 64, 3) + 30 * k for k in range(3)])
    centers, lattice = random(generator, 2, 3), 9 * torch.eye(3, dtype=torch.float64)
    config = ModelConfig(n_radial=(3, 2, 1))
    for visible in (
        (torch.arange(2), centers),
        images(centers, lattice, coords, config.cutoff),
    ):
        token_map = TokenMap(config, coords, 2, *visible)
        q = random(generator, 2, config.n_features).requires_grad_()
        b = torch.exp(random(generator, 192, 2)).requires_grad_()
        average = averaged(token_map, q, b)
        blocks = list(token_map.blocks())
        assert len(blocks) > 1
        plain = torch.cat(
            [averaged_block_plainly(token_map, q, b[points], t) for points, t in blocks]
        )
        order = torch.argsort(torch.cat([points for points, _ in blocks]))
        torch.testing.assert_close(average, plain[order], rtol=ROUNDING, atol=ROUNDING)
        slopes = grad(average.square().sum(), (q, b), create_graph=True)
        curved = grad(sum(x.square().sum() for x in slopes), (q, b))
        assert all(x.isfinite().all() for x in (*slopes, *curved))
        (only_b,) = grad(averaged(token_map, q.detach(), b).square().sum(), b, create_graph=True)
        torch.testing.assert_close(only_b, slopes[1])


def test_second_derivatives_where_one_input_comes_from_another(generator: torch.Generator) -> None:
    """b and u come from ρ."""
    s, average = random(generator, 4, 3), random(generator, 4, 4 * len(HEADS))

    def seen(rho: Tensor) -> Tensor:
        return see_averages(average, rho, s * rho[:, None], widths(rho, s))

    rho = torch.exp(random(generator, 4)).requires_grad_()
    assert gradcheck(seen, [rho])
    assert gradgradcheck(seen, [rho])
