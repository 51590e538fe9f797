"""Analytic deorbitalizers: α from ρ, ∇ρ, ∇²ρ alone, the classic recipes to measure against.

With F_W = 5p/3 and q the reduced Laplacian, τ = τ_unif F_K and α = F_K − F_W. All take p = s² and
q and give α, dimensionless and of one shape.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Deorbitalizer = Callable[[Tensor, Tensor], Tensor]


def tfvw(p: Tensor, q: Tensor) -> Tensor:
    """Thomas-Fermi plus von Weizsäcker: α = 1 everywhere."""
    return torch.ones_like(p)


def ge2(p: Tensor, q: Tensor) -> Tensor:
    """Second-order gradient expansion F_K = 1 + 5p/27 + 20q/9, α clipped at 0."""
    return (1 + 5 * p / 27 + 20 * q / 9 - 5 * p / 3).clamp_min(0)


def perdew_constantin(p: Tensor, q: Tensor, a: float, b: float) -> Tensor:
    """Modified fourth-order gradient expansion joined to von Weizsäcker by f_ab(z).

    J. P. Perdew and L. A. Constantin, Phys. Rev. B 75, 155109 (2007),
    doi:10.1103/PhysRevB.75.155109.
    """
    f_w = 5 * p / 3
    delta = 8 * q**2 / 81 - p * q / 9 + 8 * p**2 / 243
    f_k = (1 + 5 * p / 27 + 20 * q / 9 + delta) / torch.sqrt(1 + (delta / (1 + f_w)) ** 2)
    z = f_k - f_w
    inner = z.clamp(a / 40, 39 * a / 40)
    ratio = (1 + torch.exp(-a / (a - inner))) / (
        torch.exp(-a / inner) + torch.exp(-a / (a - inner))
    )
    join = torch.exp(-a * b / inner) * ratio**b
    join = torch.where(z <= a / 40, 0.0, torch.where(z >= 39 * a / 40, 1.0, join))
    return z * join


def pc07(p: Tensor, q: Tensor) -> Tensor:
    """Perdew and Constantin's own parameters."""
    return perdew_constantin(p, q, a=0.5389, b=3.0)


def pcopt(p: Tensor, q: Tensor) -> Tensor:
    """Reparameterized for SCAN-L: Mejia-Rodriguez and Trickey, doi:10.1103/PhysRevA.96.052512."""
    return perdew_constantin(p, q, a=1.784720, b=0.258304)


def cancio_stewart_kuna(p: Tensor, q: Tensor, a: float) -> Tensor:
    """α = 1 + z I(z), z = 20q/9 − 40p/27; I = [1 − exp(−1/|z|^a)]^{1/a} for z < 0, else 1.

    A. C. Cancio, D. Stewart and A. Kuna, J. Chem. Phys. 144, 084107 (2016), doi:10.1063/1.4942016.
    """
    z = 20 * q / 9 - 40 * p / 27
    magnitude = z.abs().clamp_min(1e-12)
    damped = (-torch.expm1(-(magnitude**-a))) ** (1 / a)
    return (1 + z * torch.where(z < 0, damped, 1.0)).clamp_min(0)


def csk1(p: Tensor, q: Tensor) -> Tensor:
    """Cancio-Stewart-Kuna with a = 1."""
    return cancio_stewart_kuna(p, q, 1.0)


def csk4(p: Tensor, q: Tensor) -> Tensor:
    """Cancio-Stewart-Kuna with a = 4."""
    return cancio_stewart_kuna(p, q, 4.0)


DEORBITALIZERS: dict[str, Deorbitalizer] = {
    "TFvW": tfvw,
    "GE2": ge2,
    "PC07": pc07,
    "PCopt": pcopt,
    "CSK1": csk1,
    "CSK4": csk4,
}
