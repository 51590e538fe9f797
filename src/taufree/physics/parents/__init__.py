"""Parent meta-GGAs: an analytic enhancement factor F_x(p, α) each, and a correlation beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from taufree.errors import UserError
from taufree.physics.descriptors import (
    iso_orbital_indicator,
    lda_exchange,
    reduced_gradient_squared,
)
from taufree.physics.parents import ms2, r2scan


@dataclass(frozen=True)
class Parent:
    """A meta-GGA whose exchange depends on τ through α, e_x = ρ ε_x^LDA F_x(p, α).

    ``xc`` is the whole functional and ``exchange``, ``correlation`` its parts, in libxc's names.
    Where the correlation is a meta-GGA too, its τ is the same τ̃ = τ_W + α̃ τ_unif.
    """

    xc: str
    exchange: str
    correlation: str
    enhancement: Callable[[Tensor, Tensor], Tensor]

    @property
    def correlation_needs_tau(self) -> bool:
        return self.correlation.startswith("MGGA_")


PARENTS = {
    "ms2": Parent("MS2", "MGGA_X_MS2", "GGA_C_REGTPSS", ms2.enhancement),
    "r2scan": Parent("R2SCAN", "MGGA_X_R2SCAN", "MGGA_C_R2SCAN", r2scan.enhancement),
}


def parent_named(xc: str) -> Parent:
    """The parent whose whole functional is called ``xc``, as records and systems call it.

    Raises
    ------
    UserError
        There is none.
    """
    for parent in PARENTS.values():
        if parent.xc == xc.upper():
            return parent
    known = ", ".join(parent.xc for parent in PARENTS.values())
    raise UserError(f"no parent functional {xc!r}: choose from {known}.")


def energy_density(parent: Parent, rho: Tensor, sigma: Tensor, tau: Tensor) -> Tensor:
    """e_x(ρ, σ, τ) = ρ ε_x^LDA F_x(p, α), energy per volume of an unpolarized density.

    Its partial derivatives are libxc's ``vrho``, ``vsigma`` and ``vtau``. All arguments have one
    shape; ρ > 0.
    """
    p = reduced_gradient_squared(rho, sigma)
    alpha = iso_orbital_indicator(rho, sigma, tau)
    return lda_exchange(rho) * parent.enhancement(p, alpha)


def partial_derivatives(
    parent: Parent, rho: Tensor, sigma: Tensor, tau: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """e_x of `energy_density`, and ∂e_x/∂ρ, ∂e_x/∂σ, ∂e_x/∂τ: four of that shape, without graph."""
    variables = [x.detach().requires_grad_() for x in (rho, sigma, tau)]
    with torch.enable_grad():
        exc = energy_density(parent, *variables)
        vrho, vsigma, vtau = torch.autograd.grad(exc.sum(), variables)
    return exc.detach(), vrho, vsigma, vtau
