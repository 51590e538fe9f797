"""A parent's exchange against libxc: energy, first and second derivatives, anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import grad

from reference import Libxc, OrbitalDensity
from taufree.physics.descriptors import (
    K_F,
    reduced_gradient_squared,
    tau_uniform,
    tau_weizsaecker,
)
from taufree.physics.parents import Parent, energy_density
from tolerances import LIBXC

EPSILON = torch.finfo(torch.float64).eps
NAMES = ("rho", "sigma", "tau")
EDGES_RHO = (1e-8, 1e-4, 1.0, 1e4)
EDGES_S = (0.0, 1e-10, 1e-3, 1.0, 10.0, 1e4)
EDGES_ALPHA = (0.0, 1e-6, 1 - 1e-8, 1.0, 1 + 1e-8, 10.0, 1e6)
Fields = tuple[Tensor, Tensor, Tensor]


def grid_of(*axes: tuple[float, ...]) -> list[Tensor]:
    """All combinations of the axes' values."""
    values = (torch.tensor(axis, dtype=torch.float64) for axis in axes)
    return [x.flatten() for x in torch.meshgrid(*values, indexing="ij")]


def edges(more_alpha: tuple[float, ...] = ()) -> Fields:
    """ρ, σ, τ where formulas break: ρ → 0, s → 0, s → ∞, α = 0, 1, ∞."""
    rho, s, alpha = grid_of(EDGES_RHO, EDGES_S, EDGES_ALPHA + more_alpha)
    sigma = (2 * K_F * s) ** 2 * rho ** (8 / 3)
    return rho, sigma, tau_weizsaecker(rho, sigma) + alpha * tau_uniform(rho)


def real_densities(*systems: OrbitalDensity) -> Iterator[Fields]:
    """ρ, σ, τ of each unpolarized density of some systems."""
    for system in systems:
        for rho, sigma, tau, _ in system.unpolarized:
            yield tuple(x[rho > 1e-10] for x in (rho, sigma, tau))


def assert_matches_libxc(parent: Parent, fields: Fields, sharpness: float = 1) -> None:
    """Energy, first and second derivatives, on the scale e_x / (natural size of the variable).

    libxc subtracts enhancement factors where both tend to one limit and loses ε of F_x; each
    derivative multiplies that by σ ∂α/∂σ = −5p/3. ``sharpness`` is how much faster than on the
    scale p ~ 1 the parent changes.
    """
    fields = tuple(x.clone().requires_grad_() for x in fields)
    rho, sigma, tau = (x.detach() for x in fields)
    with_lapl = rho, sigma, torch.zeros_like(rho), tau
    libxc = Libxc(parent.exchange)
    e = energy_density(parent, *fields)
    scale = libxc.energy(*with_lapl).abs()
    size = {
        "rho": rho,
        "sigma": sigma + (2 * K_F) ** 2 * rho ** (8 / 3),
        "tau": tau + tau_uniform(rho),
    }
    p = reduced_gradient_squared(rho, sigma)
    cancelled = sharpness * (LIBXC + 6 * EPSILON * (1 + 5 * p / 3))  # |∂²f/∂α²| ≤ 6

    torch.testing.assert_close(e.detach(), -scale, rtol=LIBXC, atol=0)
    first = grad(e.sum(), fields, create_graph=True)
    theirs, theirs_second = libxc.first(*with_lapl), libxc.second(*with_lapl)
    for a, v in zip(NAMES, first, strict=True):
        assert ((v - theirs[a]).abs() * size[a] <= cancelled * scale).all(), a
        for b, v2 in zip(NAMES, grad(v.sum(), fields, retain_graph=True), strict=True):
            error = (v2 - theirs_second[min(a, b), max(a, b)]).abs() * size[a] * size[b]
            assert (error <= cancelled * (1 + 5 * p / 3) * scale).all(), (a, b)
