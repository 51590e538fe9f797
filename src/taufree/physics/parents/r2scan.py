"""r²SCAN exchange: J. W. Furness et al., J. Phys. Chem. Lett. 11, 8208 (2020).

doi:10.1021/acs.jpclett.0c02405; the constants c_i of the interpolation are those of rSCAN.
"""

from __future__ import annotations

import torch
from torch import Tensor

ETA = 1e-3
K0 = 0.174
K1 = 0.065
MU = 10 / 81
DP2 = 0.361
A1 = 4.9479
C2 = 0.8
D = 1.24
POLYNOMIAL = (
    1.0, -0.667, -0.4445555, -0.663086601049, 1.451297044490, -0.887998041597, 0.234528941479,
    -0.023185843322,
)  # fmt: skip
"""f(ᾱ) = Σ_i c_i ᾱ^i up to ᾱ = 2.5."""
JOIN = 2.5
SLOPE = sum(i * c for i, c in enumerate(POLYNOMIAL)) * K0
"""C_2 = −Σ_i i c_i (1 − h⁰) = f′(1) k₀: what ∂F_x/∂ᾱ is in the uniform gas."""
C_ETA = 20 / 27 + ETA * 5 / 3
P_TINY = 1e-10
"""Below, g(p) is 1 to the last bit, and its derivatives are 0."""


def enhancement(p: Tensor, alpha: Tensor) -> Tensor:
    """F_x = g(p) {h¹(p) + f(ᾱ) [h⁰ − h¹(p)]} with the regularized ᾱ = α / (1 + η 5p/3).

    h⁰ = 1 + k₀; h¹ = 1 + k₁ − k₁/(1 + x/k₁), x = [C_η C_2 exp(−p²/d⁴) + μ] p;
    g = 1 − exp(−a₁ p^{−1/4}).

    Parameters
    ----------
    p, alpha : Tensor, same shape, ≥ 0
        Squared reduced gradient and iso-orbital indicator α = (τ − τ_W)/τ_unif.
    """
    x = (C_ETA * SLOPE * torch.exp(-(p**2) / DP2**4) + MU) * p
    h1 = 1 + K1 - K1 / (1 + x / K1)
    f = interpolation(alpha / (1 + ETA * 5 / 3 * p))
    return damping(p) * (h1 + f * (1 + K0 - h1))


def damping(p: Tensor) -> Tensor:
    """g = 1 − exp(−a₁ p^{−1/4}) makes F_x vanish like p^{−1/4} for p → ∞.

    Two forms: 1 − eʸ cancels at large p, and PyTorch's derivative of expm1 does at small p.
    """
    y = A1 * p.clamp_min(P_TINY) ** -0.25
    return torch.where(y < 1, -torch.expm1(-y.clamp_max(1)), 1 - torch.exp(-y))


def interpolation(alpha: Tensor) -> Tensor:
    """f(ᾱ): a polynomial up to 2.5, −d exp(c₂/(1 − ᾱ)) above; f(0) = 1, f(1) = 0, f(∞) = −d."""
    small = alpha.clamp_max(JOIN)
    below = torch.zeros_like(alpha)
    for c in reversed(POLYNOMIAL):
        below = below * small + c
    above = -D * torch.exp(C2 / (1 - alpha.clamp_min(JOIN)))
    return torch.where(alpha <= JOIN, below, above)
