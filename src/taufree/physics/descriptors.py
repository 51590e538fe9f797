"""Local descriptors of an unpolarized density; each formula is written here once (atomic units).

Arguments and results of a function have one shape, (..., n_points), with a last axis of 3 more for
vectors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

K_F = (3 * math.pi**2) ** (1 / 3)
"""k_F = K_F ρ^{1/3}"""
C_TF = 0.3 * (3 * math.pi**2) ** (2 / 3)
"""τ_unif = C_TF ρ^{5/3} (Thomas-Fermi)"""
C_X = -0.75 * (3 / math.pi) ** (1 / 3)
"""ε_x^LDA = C_X ρ^{1/3} (Dirac)"""
RHO_TINY = 1e-30
"""Smallest density that enters a division; far below anything that carries energy."""


def reduced_gradient(rho: Tensor, grad_rho: Tensor) -> Tensor:
    """s as a vector, ∇ρ / (2 (3π²)^{1/3} ρ^{4/3}); (n_points, 3) -> (n_points, 3)."""
    return grad_rho / (2 * K_F * rho.clamp_min(RHO_TINY) ** (4 / 3))[:, None]


def reduced_gradient_squared(rho: Tensor, sigma: Tensor) -> Tensor:
    """p = s² = σ / (4 (3π²)^{2/3} ρ^{8/3}), dimensionless."""
    return sigma / (4 * K_F**2 * rho.clamp_min(RHO_TINY) ** (8 / 3))


def reduced_laplacian(rho: Tensor, lapl: Tensor) -> Tensor:
    """q = ∇²ρ / (4 (3π²)^{2/3} ρ^{5/3}), dimensionless."""
    return lapl / (4 * K_F**2 * rho.clamp_min(RHO_TINY) ** (5 / 3))


def tau_weizsaecker(rho: Tensor, sigma: Tensor) -> Tensor:
    """τ_W = σ / (8ρ), exact for one orbital and a lower bound of τ."""
    return sigma / (8 * rho.clamp_min(RHO_TINY))


def tau_uniform(rho: Tensor) -> Tensor:
    """τ_unif = (3/10)(3π²)^{2/3} ρ^{5/3} of the uniform electron gas."""
    return C_TF * rho.clamp_min(0) ** (5 / 3)


def iso_orbital_indicator(rho: Tensor, sigma: Tensor, tau: Tensor) -> Tensor:
    """α = (τ − τ_W) / τ_unif: 0 for one orbital, 1 in the uniform gas, ≫ 1 between shells."""
    excess = tau - tau_weizsaecker(rho, sigma)
    return (excess / tau_uniform(rho.clamp_min(RHO_TINY))).clamp_min(0)


def kinetic_energy_density(rho: Tensor, sigma: Tensor, alpha: Tensor) -> Tensor:
    """τ = τ_W + α τ_unif: what an α stands for."""
    return tau_weizsaecker(rho, sigma) + alpha * tau_uniform(rho)


def lda_exchange(rho: Tensor) -> Tensor:
    """ρ ε_x^LDA = −(3/4)(3/π)^{1/3} ρ^{4/3}, energy per volume."""
    return C_X * rho.clamp_min(0) ** (4 / 3)


def contracted_gradient(grad_rho: Tensor) -> Tensor:
    """σ = ∇ρ·∇ρ; (..., n_points, 3) -> (..., n_points)."""
    return torch.linalg.vecdot(grad_rho, grad_rho)
