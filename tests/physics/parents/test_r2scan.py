"""r²SCAN exchange against libxc, and the conditions it was built on."""

from __future__ import annotations

import pytest
import torch
from pyscf import dft
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck

from libxc_agreement import assert_matches_libxc, edges, grid_of, real_densities
from reference import OrbitalDensity, radial_quadrature
from taufree.physics.parents import PARENTS, energy_density
from taufree.physics.parents.r2scan import DP2, JOIN, K0, D, enhancement, interpolation
from tolerances import LIBXC, QUADRATURE, ROUNDING

R2SCAN = PARENTS["r2scan"]
SHARPNESS = 1 / DP2**2  # exp(−p²/d⁴)
PRINTED_POLYNOMIAL = 1e-9
"""The coefficients are printed with twelve digits; they sum to f(1) = 0."""
PUBLISHED_HYDROGEN = 1e-4
"""κ₀ = 0.174 and a₁ = 4.9479 were fixed by E_x(H) = −5/16 hartree for SCAN."""


def test_matches_libxc_on_real_densities(water: OrbitalDensity, hydroxyl: OrbitalDensity) -> None:
    for fields in real_densities(water, hydroxyl):
        assert_matches_libxc(R2SCAN, fields, SHARPNESS)


def test_matches_libxc_at_the_edges() -> None:
    assert_matches_libxc(R2SCAN, edges(more_alpha=(2.0, JOIN - 1e-6, JOIN + 1e-6)), SHARPNESS)


def test_gradcheck(generator: torch.Generator) -> None:
    """First and second derivatives, on both sides of ᾱ = 2.5 where the formula changes."""

    def random(low: float, high: float) -> Tensor:
        x = torch.rand(12, dtype=torch.float64, generator=generator)
        return (low + (high - low) * x).requires_grad_()

    for low, high in ((0.05, 2.4), (2.6, 6.0)):
        inputs = random(0.1, 2.0), random(low, high)
        assert gradcheck(enhancement, inputs) and gradgradcheck(enhancement, inputs)


def test_interpolation_limits() -> None:
    alpha = torch.tensor([0.0, 1.0, 1e300], dtype=torch.float64)
    exact = torch.tensor([1.0, 0.0, -D], dtype=torch.float64)
    torch.testing.assert_close(interpolation(alpha), exact, rtol=0, atol=PRINTED_POLYNOMIAL)
    sides = torch.tensor([JOIN, JOIN * (1 + 1e-15)], dtype=torch.float64)
    left, right = interpolation(sides)
    assert left == pytest.approx(right.item(), abs=PRINTED_POLYNOMIAL)


def test_bounds_hold_for_any_deorbitalizer() -> None:
    """F_x ≤ h⁰ = 1.174 whatever α̃ a network predicts; F_x = 1 in the uniform gas."""
    p, alpha = grid_of((0.0, 1e-3, 0.3, 1.0, 30.0, 1e6, 1e300), (0.0, 0.3, 1.0, 3.0, 1e4, 1e300))
    f = enhancement(p, alpha)
    assert f.isfinite().all() and (f <= 1 + K0 + ROUNDING).all() and (f >= 0).all()
    uniform = enhancement(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    assert uniform.item() == pytest.approx(1, abs=PRINTED_POLYNOMIAL)


def test_exchange_energy_of_the_hydrogen_atom() -> None:
    r, weights = radial_quadrature()
    rho = 2 * torch.exp(-2 * r) / torch.pi
    e_x = (weights @ energy_density(R2SCAN, rho, 4 * rho**2, rho / 2)).item() / 2
    assert weights @ rho == pytest.approx(2, rel=QUADRATURE)
    assert e_x == pytest.approx(-5 / 16, abs=PUBLISHED_HYDROGEN)


@pytest.mark.parametrize("scale", [0.5, 2.0, 10.0])
def test_uniform_coordinate_scaling(water: OrbitalDensity, scale: float) -> None:
    """ρ_λ(r) = λ³ρ(λr): E_x[ρ_λ] = λ E_x[ρ], pointwise e_x → λ⁴ e_x."""
    ((rho, sigma, tau),) = real_densities(water)
    scaled = energy_density(R2SCAN, scale**3 * rho, scale**8 * sigma, scale**5 * tau)
    ours = scale**4 * energy_density(R2SCAN, rho, sigma, tau)
    torch.testing.assert_close(scaled, ours, rtol=LIBXC, atol=0)


def test_finite_at_absurd_inputs() -> None:
    huge = (0.0, 1e-300, 1e-30, 1.0, 1e30, 1e150)
    x = [a.requires_grad_() for a in grid_of(huge, huge)]
    for v in (enhancement(*x), *grad(enhancement(*x).sum(), x)):
        assert v.isfinite().all()


def test_names_are_libxcs() -> None:
    parts = dft.libxc.parse_xc(f"{R2SCAN.exchange},{R2SCAN.correlation}")
    assert dft.libxc.parse_xc(R2SCAN.xc) == parts
    assert R2SCAN.correlation_needs_tau and not PARENTS["ms2"].correlation_needs_tau
