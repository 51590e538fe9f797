"""Local descriptors: libxc, the exact hydrogen atom, the uniform gas, scaling, bounds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from reference import Libxc, OrbitalDensity, hydrogen_atom, radial_quadrature
from taufree.physics.descriptors import (
    contracted_gradient,
    iso_orbital_indicator,
    lda_exchange,
    reduced_gradient_squared,
    reduced_laplacian,
    tau_uniform,
    tau_weizsaecker,
)
from tolerances import LIBXC, QUADRATURE, ROUNDING


def uniform_gas() -> tuple[Tensor, Tensor, Tensor]:
    """ρ of r_s = 0.1 to 100, σ = 0, and τ = ρ (3/10) k_F²."""
    rho = 3 / (4 * torch.pi * torch.logspace(-1, 2, 7, dtype=torch.float64) ** 3)
    return rho, torch.zeros_like(rho), rho * 0.3 * (3 * torch.pi**2 * rho) ** (2 / 3)


def test_uniform_gas() -> None:
    rho, sigma, tau = uniform_gas()
    k_f = (3 * torch.pi**2 * rho) ** (1 / 3)
    torch.testing.assert_close(tau_uniform(rho), tau, rtol=ROUNDING, atol=0)
    # Dirac: −(3/4π) k_F an electron
    dirac = -3 / (4 * torch.pi) * k_f * rho
    torch.testing.assert_close(lda_exchange(rho), dirac, rtol=ROUNDING, atol=0)
    assert (reduced_gradient_squared(rho, sigma) == 0).all()
    assert (reduced_laplacian(rho, sigma) == 0).all()
    alpha = iso_orbital_indicator(rho, sigma, tau)
    torch.testing.assert_close(alpha, torch.ones_like(rho), rtol=ROUNDING, atol=0)


def test_energies_of_libxc(water: OrbitalDensity) -> None:
    ((rho, sigma, tau, lapl),) = water.unpolarized
    held = rho > 1e-10
    fields = [x[held] for x in (rho, sigma, lapl, tau)]
    # Thomas-Fermi, von Weizsäcker and Dirac as the libxc limits of meta-GGA forms: GEA2 is
    # τ_unif + τ_W/9 + ∇²ρ/6
    gea2 = tau_uniform(rho) + tau_weizsaecker(rho, sigma) / 9 + lapl / 6
    theirs = Libxc("MGGA_K_GEA2").energy(*fields)
    size = tau_uniform(fields[0]) + fields[2].abs()
    assert ((gea2[held] - theirs).abs() <= LIBXC * size).all()


def test_one_orbital_has_alpha_zero() -> None:
    """The exact 1s density of hydrogen: τ = ½|∇φ|² = τ_W everywhere, and s is known."""
    rho, sigma, tau, lapl = hydrogen_atom()
    torch.testing.assert_close(tau_weizsaecker(rho, sigma), tau, rtol=ROUNDING, atol=0)
    k_f = (3 * torch.pi**2 * rho) ** (1 / 3)
    # |τ − τ_W| is a rounding error of τ, hence ε τ_W/τ_unif = ε 5p/3
    p = reduced_gradient_squared(rho, sigma)
    assert (iso_orbital_indicator(rho, sigma, tau) <= ROUNDING * p).all()
    torch.testing.assert_close(p, 1 / k_f**2, rtol=ROUNDING, atol=0)  # |∇ρ| = 2ρ
    q = lapl / rho / (4 * k_f**2)
    torch.testing.assert_close(reduced_laplacian(rho, lapl), q, rtol=ROUNDING, atol=0)


def test_kinetic_energy_of_the_hydrogen_atom() -> None:
    r, weights = radial_quadrature()
    rho = torch.exp(-2 * r) / torch.pi
    assert weights @ tau_weizsaecker(rho, 4 * rho**2) == pytest.approx(0.5, rel=QUADRATURE)
    # ∫(e^{−2r}/π)^{4/3} = (27/64) π^{−1/3}
    dirac = -0.75 * (3 / math.pi) ** (1 / 3) * 27 / 64 * math.pi ** (-1 / 3)
    assert weights @ lda_exchange(rho) == pytest.approx(dirac, rel=QUADRATURE)


def test_weizsaecker_is_five_thirds_p_of_the_uniform_gas(water: OrbitalDensity) -> None:
    rho, sigma, _, _ = (x[water.unpolarized[0][0] > 1e-10] for x in water.unpolarized[0])
    p = reduced_gradient_squared(rho, sigma)
    weizsaecker = 5 / 3 * p * tau_uniform(rho)
    torch.testing.assert_close(tau_weizsaecker(rho, sigma), weizsaecker, rtol=ROUNDING, atol=0)


def test_weizsaecker_is_a_lower_bound(water: OrbitalDensity, hydroxyl: OrbitalDensity) -> None:
    for system in (water, hydroxyl):
        for rho, sigma, tau, _ in system.unpolarized:
            held = rho > 1e-8
            assert (tau_weizsaecker(rho, sigma) <= tau * (1 + ROUNDING))[held].all()
            alpha = iso_orbital_indicator(rho, sigma, tau)[held]
            assert (alpha >= 0).all() and alpha.max() > 1


@pytest.mark.parametrize("scale", [0.25, 3.0])
def test_descriptors_are_dimensionless(water: OrbitalDensity, scale: float) -> None:
    """p, q, α of ρ_λ(r) = λ³ρ(λr) are those of ρ at λr."""
    rho, sigma, tau, lapl = (x[water.unpolarized[0][0] > 1e-8] for x in water.unpolarized[0])
    scaled = scale**3 * rho, scale**8 * sigma, scale**5 * tau, scale**5 * lapl
    for descriptor, fields, fields_scaled in (
        (reduced_gradient_squared, (rho, sigma), scaled[:2]),
        (reduced_laplacian, (rho, lapl), (scaled[0], scaled[3])),
    ):
        torch.testing.assert_close(
            descriptor(*fields_scaled), descriptor(*fields), rtol=ROUNDING, atol=0
        )
    alpha = iso_orbital_indicator(rho, sigma, tau)
    p = reduced_gradient_squared(rho, sigma)
    error = (iso_orbital_indicator(*scaled[:3]) - alpha).abs()
    assert (error <= ROUNDING * (alpha + 5 * p / 3)).all()  # α is a difference of τ and τ_W


def test_contracted_gradient_is_invariant_under_rotation(generator: torch.Generator) -> None:
    grad_rho = torch.randn(2, 50, 3, dtype=torch.float64, generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    sigma = contracted_gradient(grad_rho)
    assert sigma.shape == (2, 50)
    torch.testing.assert_close(sigma, grad_rho.norm(dim=-1) ** 2, rtol=ROUNDING, atol=0)
    torch.testing.assert_close(
        contracted_gradient(grad_rho @ rotation), sigma, rtol=ROUNDING, atol=0
    )


def test_gradcheck(generator: torch.Generator) -> None:
    def random() -> Tensor:
        x = torch.rand(8, dtype=torch.float64, generator=generator)
        return (0.3 + x).requires_grad_()

    rho, sigma, tau = random(), random(), 5 + random().detach()
    tau.requires_grad_()
    for function, inputs in (
        (reduced_gradient_squared, (rho, sigma)),
        (reduced_laplacian, (rho, sigma)),
        (tau_weizsaecker, (rho, sigma)),
        (tau_uniform, (rho,)),
        (lda_exchange, (rho,)),
        (iso_orbital_indicator, (rho, sigma, tau)),
    ):
        assert gradcheck(function, inputs) and gradgradcheck(function, inputs)


def test_an_empty_point_is_finite() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    for value in (
        reduced_gradient_squared(zero, zero),
        reduced_laplacian(zero, zero),
        tau_weizsaecker(zero, zero),
        tau_uniform(zero),
        lda_exchange(zero),
        iso_orbital_indicator(zero, zero, zero),
    ):
        assert value.item() == 0
