"""Parent meta-GGAs: an analytic enhancement factor F_x(p, α) each, and a correlation beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from taufree.physics.descriptors import (
    iso_orbital_indicator,
    lda_exchange,
    reduced_gradient_squared,
)
from taufree.physics.parents import ms2


@dataclass(frozen=True)
class Parent:
    """A meta-GGA whose exchange depends on τ through α, e_x = ρ ε_x^LDA F_x(p, α).

    ``xc`` is the whole functional and ``exchange``, ``correlation`` its parts, in libxc's names;
    ``correlation`` must not need τ.
    """

    xc: str
    exchange: str
    correlation: str
    enhancement: Callable[[Tensor, Tensor], Tensor]


PARENTS = {"ms2": Parent("MS2", "MGGA_X_MS2", "GGA_C_REGTPSS", ms2.enhancement)}


def energy_density(parent: Parent, rho: Tensor, sigma: Tensor, tau: Tensor) -> Tensor:
    """e_x(ρ, σ, τ) = ρ ε_x^LDA F_x(p, α), energy per volume of an unpolarized density.

    Its partial derivatives are libxc's ``vrho``, ``vsigma`` and ``vtau``. All arguments have one
    shape; ρ > 0.
    """
    p = reduced_gradient_squared(rho, sigma)
    alpha = iso_orbital_indicator(rho, sigma, tau)
    return lda_exchange(rho) * parent.enhancement(p, alpha)
