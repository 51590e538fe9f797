"""MS2 exchange: J. Sun et al., J. Chem. Phys. 138, 044113 (2013), doi:10.1063/1.4789414."""

from __future__ import annotations

import torch
from torch import Tensor

KAPPA = 0.504
MU = 10 / 81
C = 0.14601
B = 4.0


def enhancement(p: Tensor, alpha: Tensor) -> Tensor:
    """F_x = F¹(p) + f(α) [F⁰(p) − F¹(p)], F^{1,0} = 1 + κ − κ²/(κ + μp + {0, c}).

    Parameters
    ----------
    p, alpha : Tensor, same shape, ≥ 0
        Squared reduced gradient and iso-orbital indicator.
    """
    d = KAPPA + MU * p
    f1 = 1 + KAPPA - KAPPA**2 / d
    f0_minus_f1 = KAPPA**2 * C / (d * (d + C))  # the difference itself would cancel at large p
    return f1 + interpolation(alpha) * f0_minus_f1


def interpolation(alpha: Tensor) -> Tensor:
    """f(α) = (1 − α²)³ / (1 + α³ + b α⁶): f(0) = 1, f(1) = 0, f(∞) = −1/b.

    Above α = 1 the fraction is divided through by α⁶, so that no power overflows.
    """
    small = alpha.clamp_max(1)
    inverse = 1 / alpha.clamp_min(1)
    a, b = small**3, inverse**3
    below = (1 - small**2) ** 3 / (1 + a + B * a * a)
    above = (inverse**2 - 1) ** 3 / (b * b + b + B)
    return torch.where(alpha <= 1, below, above)
