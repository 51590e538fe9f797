"""E_x and its potential as functions of the parameters, to train on potentials.

What tokens see and what points average depend on the density alone, by maps J that no parameter
enters: with E(ρ, ∇ρ, c, ρ̄; θ), δE/δρ = ∂E/∂ρ + Jᵀ (∂E/∂c, ∂E/∂ρ̄). PyTorch differentiates the
partial derivatives by θ; Jᵀ and J are applied by compiled loops, and are never differentiated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad
from torch.autograd.function import once_differentiable

from taufree.functional import Functional, Geometry, hold, leaf
from taufree.model.averages import averaged, fit, widths
from taufree.model.network import token_values
from taufree.physics.descriptors import reduced_gradient

STEP = 1e-4
"""Relative step in b of the central difference for ∂ρ̄/∂b: good to 1e-8, for a training."""


def energy_and_potential(
    functional: Functional, rho: Tensor, grad_rho: Tensor, weights: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    """w e_x, ∂E_x/∂ρ and ∂E_x/∂∇ρ at every point, differentiable by the parameters.

    Arguments and shapes as of `Functional.potential`.
    """
    known = _Known(functional, rho, grad_rho, weights, geometry)
    with torch.enable_grad():
        n, g, c, average = map(leaf, (known.rho, known.grad_rho, known.c, known.average))
        answers = functional.network.answers(c[..., :2], geometry.bonds)
        f = geometry.token_map.to_points(*answers)
        s = reduced_gradient(n, g)
        energy = known.weights * functional.at_points(n, s, widths(n, s), f, average)[0]
        d_n, d_g, d_c, d_average = grad(energy.sum(), (n, g, c, average), create_graph=True)
        through_n, through_g = _Pull.apply(d_c, d_average, known)
    return energy, d_n + through_n, d_g + through_g


class _Known:
    """c and ρ̄ of one density, and their derivatives by it."""

    def __init__(
        self,
        functional: Functional,
        rho: Tensor,
        grad_rho: Tensor,
        weights: Tensor,
        geometry: Geometry,
    ) -> None:
        self.functional, self.token_map = functional, geometry.token_map
        self.rho, self.grad_rho, held = hold(rho, grad_rho)
        self.weights = weights * held
        with torch.enable_grad():
            self.n, self.g = leaf(self.rho), leaf(self.grad_rho)
            s = reduced_gradient(self.n, self.g)
            self.values = token_values(s, self.weights * self.n, geometry.normalizer)
            self.b = widths(self.n, s)
            self.c = self._seen(self.values)
            self.q = fit(self.c[..., 2:], functional.network.config)
            self.average = averaged(self.token_map, self.q, self.b)

    def _seen(self, values: Tensor) -> Tensor:
        return self.token_map.to_tokens(values.to(self.functional.dtype))

    def pull(self, d_c: Tensor, d_average: Tensor) -> tuple[Tensor, Tensor]:
        """Jᵀ."""
        outputs = (self.c, self.average), (self.n, self.g), (d_c, d_average)
        d_n, d_g = grad(*outputs, retain_graph=True)
        return d_n, d_g

    def push(self, d_n: Tensor, d_g: Tensor) -> tuple[Tensor, Tensor]:
        """J: the changes of c and ρ̄ with changes of ρ and ∇ρ."""
        local = self.values, self.b
        with torch.enable_grad():
            any_slope = [torch.zeros_like(x).requires_grad_() for x in local]
            back = grad(local, (self.n, self.g), any_slope, create_graph=True, retain_graph=True)
        d_values, d_b = grad(back, any_slope, (d_n, d_g))
        d_c, q, b = self._seen(d_values), self.q.detach(), self.b.detach()
        d_q = fit(d_c[..., 2:], self.functional.network.config)
        wider, narrower = (averaged(self.token_map, q, b * (1 + h)) for h in (-STEP, STEP))
        by_b = ((narrower - wider) / (2 * STEP)).unflatten(1, (-1, 4)) / b[..., None]
        return d_c, averaged(self.token_map, d_q, b) + (by_b * d_b[..., None]).flatten(1)


class _Pull(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, d_c: Tensor, d_average: Tensor, known: _Known) -> tuple[Tensor, Tensor]:
        ctx.known = known
        return known.pull(d_c, d_average)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *changes: Tensor) -> tuple[Tensor, Tensor, None]:
        return *ctx.known.push(*changes), None
