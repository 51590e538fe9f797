"""The correlation beside MS2, GGA_C_REGTPSS: PBE's form with the density-dependent β of revTPSS.

J. P. Perdew, K. Burke, M. Ernzerhof, Phys. Rev. Lett. 77, 3865 (1996),
doi:10.1103/PhysRevLett.77.3865; J. P. Perdew et al., Phys. Rev. Lett. 103, 026403 (2009),
doi:10.1103/PhysRevLett.103.026403. The uniform gas is that of J. P. Perdew and Y. Wang, Phys. Rev.
B 45, 13244 (1992), doi:10.1103/PhysRevB.45.13244, with the digits of PBE's authors' own program.
Hosts call libxc; this form is for exported files.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from taufree.physics.descriptors import K_F

UNPOLARIZED = (0.0310907, 0.21370, 7.5957, 3.5876, 1.6382, 0.49294)
POLARIZED = (0.01554535, 0.20548, 14.1189, 6.1977, 3.3662, 0.62517)
STIFFNESS = (0.0168869, 0.11125, 10.357, 3.6231, 0.88026, 0.49671)
"""A, α₁, β₁ ... β₄ of ε_c(r_s, 0), ε_c(r_s, 1) and −α_c(r_s)."""
SECOND = 4 / (9 * (2 ** (1 / 3) - 1))
"""f″(0) of `spin_interpolation`"""
GAMMA = (1 - math.log(2)) / math.pi**2
BETA = 0.06672455060314922
"""Gradient coefficient of the dense limit."""
EPSILON = torch.finfo(torch.float64).eps


def energy_density(rho: Tensor, zeta: Tensor, sigma: Tensor) -> Tensor:
    """e_c = ρ (ε_c^unif + H), energy per volume.

    H = γφ³ ln{1 + (β/γ) t² (1 + At²)/(1 + At² + A²t⁴)}, A = (β/γ)/(exp(−ε_c/γφ³) − 1)

    Parameters
    ----------
    rho, zeta, sigma : Tensor, same shape
        ρ = ρ↑ + ρ↓ > 0, ζ = (ρ↑ − ρ↓)/ρ, and σ = |∇ρ|² of the sum of the spins.
    """
    r_s = (3 / (4 * math.pi * rho)) ** (1 / 3)
    up, down = ((1 + x * zeta).clamp_min(EPSILON) for x in (1, -1))  # finite slopes at ζ = ±1
    epsilon = uniform_gas(r_s, up, down)
    phi = (up ** (2 / 3) + down ** (2 / 3)) / 2
    k_s = (4 * K_F * rho ** (1 / 3) / math.pi) ** 0.5
    t2 = sigma / (2 * phi * k_s * rho) ** 2
    beta = BETA * (1 + 0.1 * r_s) / (1 + 0.1778 * r_s)
    at2 = beta / GAMMA / torch.expm1(-epsilon / (GAMMA * phi**3)) * t2
    ratio = (1 + at2) / (1 + at2 + at2**2)
    h = GAMMA * phi**3 * torch.log1p(beta / GAMMA * t2 * ratio)
    return rho * (epsilon + h)


def uniform_gas(r_s: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """ε_c^unif per electron; ``up`` and ``down`` are 1 ± ζ."""
    zeta4 = ((up - down) / 2) ** 4
    f = spin_interpolation(up, down)
    unpolarized, polarized, stiffness = (_fit(r_s, x) for x in (UNPOLARIZED, POLARIZED, STIFFNESS))
    between = -stiffness * f / SECOND * (1 - zeta4) + (polarized - unpolarized) * f * zeta4
    return unpolarized + between


def spin_interpolation(up: Tensor, down: Tensor) -> Tensor:
    """f(ζ) = [(1 + ζ)^{4/3} + (1 − ζ)^{4/3} − 2] / (2^{4/3} − 2)."""
    return (up ** (4 / 3) + down ** (4 / 3) - 2) / (2 ** (4 / 3) - 2)


def _fit(r_s: Tensor, parameters: tuple[float, ...]) -> Tensor:
    a, alpha, *beta = parameters
    b1, b2, b3, b4 = beta
    root = r_s**0.5
    series = root * (b1 + root * (b2 + root * (b3 + root * b4)))
    return -2 * a * (1 + alpha * r_s) * torch.log1p(1 / (2 * a * series))
