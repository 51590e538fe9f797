"""Deorbitalizers of others as functionals: e_x(r) on a grid, and what E_x changes with it.

Whatever the deorbitalizer, E_x = Σ_j w_j e_x(r_j) is a function of ρ, ∇ρ and ∇²ρ at all points, and
its derivatives by autodiff are what `taufree.comparators.integrator` makes V_x of: through
attention, through the estimated τ, and through the frame where there is one.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor

from taufree.comparators.expert_transformers import ExpertTransformers
from taufree.comparators.trained import (
    NETWORKS,
    TAU_ESTIMATE,
    Architecture,
    Comparator,
    load_comparator,
)
from taufree.errors import UserError, WeightsError
from taufree.functional import RHO_THRESHOLD, Functional, leaf
from taufree.model.storage import (
    fingerprint,
    load_model,
    network_fingerprint,
    read_card,
    weights_file,
)
from taufree.physics.descriptors import (
    contracted_gradient,
    kinetic_energy_density,
    lda_exchange,
    reduced_gradient_squared,
    reduced_laplacian,
)
from taufree.physics.kinetic import DEORBITALIZERS
from taufree.physics.parents import PARENTS, Parent, energy_density

POINTS = 20_000
"""Points at a time where each is by itself."""


class Rival(ABC):
    """Exchange of a spin-unpolarized density; polarized ones follow by spin scaling."""

    name: str
    parent: Parent
    fingerprint: str
    """What kept results are told apart by."""
    together: int | None = None
    """Points that see each other, in the order of the grid; None: all of them."""

    @abstractmethod
    def energy_density(
        self, rho: Tensor, grad_rho: Tensor, lapl: Tensor, weights: Tensor, coords: Tensor
    ) -> Tensor:
        """e_x (n_points,), differentiable; arguments (n_points,), ∇ρ and places (n_points, 3)."""

    def differentiated(
        self, fields: Tensor, weights: Tensor, coords: Tensor
    ) -> tuple[Tensor, Tensor]:
        """e_x (n_points,), and derivatives of Σ w e_x by ρ, ∇ρ and ∇²ρ: the rows of ``fields``.

        ``fields`` (5, n_points) in atomic units; zero where ρ is below `RHO_THRESHOLD`.
        """
        exc, derivative = torch.zeros_like(weights), torch.zeros_like(fields)
        held = (fields[0] > RHO_THRESHOLD).nonzero().squeeze(1)
        for points in held.split(self.together or max(1, len(held))):
            x, w = leaf(fields[:, points]), weights[points]
            e = self.energy_density(x[0], x[1:4].T, x[4], w, coords[points])
            exc[points] = e.detach()
            (derivative[:, points],) = torch.autograd.grad(w @ e, x)
        return exc, derivative


class Recipe(Rival):
    """MS2 with α̃(p, q) of an analytic deorbitalizer."""

    together = POINTS

    def __init__(self, name: str) -> None:
        self.name, self.fingerprint, self.parent = name, f"recipe-{name}", PARENTS["ms2"]
        self.deorbitalizer = DEORBITALIZERS[name]

    def alpha(self, rho: Tensor, sigma: Tensor, lapl: Tensor) -> Tensor:
        """α̃ (n_points,)."""
        return self.deorbitalizer(
            reduced_gradient_squared(rho, sigma), reduced_laplacian(rho, lapl)
        )

    def energy_density(
        self, rho: Tensor, grad_rho: Tensor, lapl: Tensor, weights: Tensor, coords: Tensor
    ) -> Tensor:
        sigma = contracted_gradient(grad_rho)
        alpha = self.alpha(rho, sigma, lapl)
        p = reduced_gradient_squared(rho, sigma)
        return lda_exchange(rho) * self.parent.enhancement(p, alpha)


class Learned(Rival):
    """A trained comparator in float64: E_x must be smooth to an SCF's threshold.

    Raises
    ------
    UserError
        Its parent's correlation needs τ, which it does not give.
    """

    def __init__(self, comparator: Comparator) -> None:
        network = copy.deepcopy(comparator.network).cpu().double().requires_grad_(False)
        config: Architecture = comparator.network.config  # type: ignore[assignment]
        self.name, self.network, self.parent = comparator.name, network, PARENTS[config.parent]
        self.fingerprint = network_fingerprint(network)
        self.estimate = Recipe(TAU_ESTIMATE)
        if isinstance(network, ExpertTransformers):
            self.together = network.chunk
        if self.parent.correlation_needs_tau:
            raise UserError(
                f"comparators run self-consistently for ms2 alone: {self.parent.correlation} needs "
                "their τ."
            )

    def energy_density(
        self, rho: Tensor, grad_rho: Tensor, lapl: Tensor, weights: Tensor, coords: Tensor
    ) -> Tensor:
        sigma, network = contracted_gradient(grad_rho), self.network
        if not isinstance(network, ExpertTransformers):
            return energy_density(
                self.parent, rho, sigma, network(rho, sigma, weights * rho, coords)
            )
        tau = kinetic_energy_density(rho, sigma, self.estimate.alpha(rho, sigma, lapl))
        features, partial = network.inputs(rho, grad_rho, tau, weights)
        with torch.no_grad():  # a hard arg-max has no derivative
            chosen = network.route(features, partial, coords).argmax(1)
        return network(features, coords, chosen) * lda_exchange(rho)


def load(model: str | Path | Functional | Rival) -> Functional | Rival:
    """A model as `load_model` takes it, an analytic recipe's name, or a comparator's file.

    Raises
    ------
    UserError
        Nothing of that name, or a comparator that cannot run by itself.
    """
    if isinstance(model, Functional | Rival):
        return model
    if str(model) in DEORBITALIZERS:
        return Recipe(str(model))
    try:
        path = weights_file(model)
    except WeightsError as error:
        recipes = ", ".join(DEORBITALIZERS)
        raise WeightsError(f"{error} Analytic recipes are {recipes}.") from error
    if read_card(path).get("config", {}).get("comparator") in NETWORKS:
        return Learned(load_comparator(path))
    return load_model(model)


def identity(functional: Functional | Rival) -> str:
    """What the folder of a functional's results is called by: a recipe's name, or a short hash."""
    if isinstance(functional, Recipe):
        return functional.fingerprint
    of = functional.fingerprint if isinstance(functional, Rival) else fingerprint(functional)
    return of[:12]
