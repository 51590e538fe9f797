"""MS2 exchange against libxc, 50-digit arithmetic, and the conditions it was built on."""

from __future__ import annotations

import mpmath
import pytest
import torch
from pyscf import dft
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck

from libxc_agreement import NAMES, assert_matches_libxc, edges, grid_of, real_densities
from reference import Libxc, OrbitalDensity, hydrogen_atom, radial_quadrature
from taufree.physics.descriptors import lda_exchange, reduced_gradient_squared
from taufree.physics.parents import PARENTS, energy_density
from taufree.physics.parents.ms2 import KAPPA, MU, B, C, enhancement, interpolation
from tolerances import LIBXC, PRINTED_CONSTANT, QUADRATURE, ROUNDING


def energy(rho: Tensor, sigma: Tensor, tau: Tensor) -> Tensor:
    """The parent itself, e_x with the orbitals' τ."""
    return energy_density(PARENTS["ms2"], rho, sigma, tau)


def test_matches_libxc_on_real_densities(water: OrbitalDensity, hydroxyl: OrbitalDensity) -> None:
    for fields in real_densities(water, hydroxyl):
        assert len(fields[0]) > 1000
        assert_matches_libxc(PARENTS["ms2"], fields)


def test_matches_libxc_at_the_edges() -> None:
    assert_matches_libxc(PARENTS["ms2"], edges())


def test_derivatives_match_libxc_relatively_where_electrons_are(
    water: OrbitalDensity, hydroxyl: OrbitalDensity
) -> None:
    for fields in real_densities(water, hydroxyl):
        rho, sigma, tau = (x[fields[0] > 1e-3].requires_grad_() for x in fields)
        theirs = Libxc("MGGA_X_MS2").first(rho, sigma, torch.zeros_like(rho), tau)
        ours = grad(energy(rho, sigma, tau).sum(), (rho, sigma, tau))
        for name, v in zip(NAMES, ours, strict=True):
            # a derivative that passes through zero is a difference of terms of its typical size
            typical = theirs[name].abs().median().item()
            torch.testing.assert_close(v, theirs[name], rtol=LIBXC, atol=LIBXC * typical)


def test_spin_scaling_is_libxcs_spin_polarization(hydroxyl: OrbitalDensity) -> None:
    d = hydroxyl.density
    tau = hydroxyl.tau[:, None]
    fields = torch.cat([d.rho[:, None], d.grad_rho.mT, torch.zeros_like(tau), tau], 1).numpy()
    per_electron = dft.libxc.eval_xc("MGGA_X_MS2", fields, spin=1, deriv=0)[0]
    theirs = d.rho.sum(0) * torch.from_numpy(per_electron)
    ours = sum(energy(rho, sigma, t) / 2 for rho, sigma, t, _ in hydroxyl.unpolarized)
    held = d.rho.amin(0) > 1e-8
    torch.testing.assert_close(ours[held], theirs[held], rtol=LIBXC, atol=0)


@pytest.mark.parametrize("order", [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)])
def test_enhancement_is_exact_to_rounding_for_any_p_and_alpha(order: tuple[int, int]) -> None:
    """Against 50-digit arithmetic, where libxc's own formula cancels (large p, large α)."""
    p, alpha = grid_of(
        (0.0, 1e-20, 1e-3, 1.0, 1e2, 1e8, 1e16), (0.0, 1e-6, 0.5, 1.0, 2.0, 1e2, 1e6)
    )
    x = p.requires_grad_(), alpha.requires_grad_()
    ours = enhancement(*x)
    for axis, n in enumerate(order):
        for _ in range(n):
            (ours,) = grad(ours.sum(), x[axis], create_graph=True)

    def exact(p: mpmath.mpf, alpha: mpmath.mpf) -> mpmath.mpf:
        kappa, mu, c, b = mpmath.mpf(KAPPA), mpmath.mpf(MU), mpmath.mpf(C), mpmath.mpf(B)
        f1 = 1 + kappa - kappa**2 / (kappa + mu * p)
        f0 = 1 + kappa - kappa**2 / (kappa + mu * p + c)
        f = (1 - alpha**2) ** 3 / (1 + alpha**3 + b * alpha**6)
        return f1 + f * (f0 - f1)

    with mpmath.workdps(50):
        theirs = [
            float(mpmath.diff(exact, (mpmath.mpf(a), mpmath.mpf(b)), order))
            for a, b in zip(p.tolist(), alpha.tolist(), strict=True)
        ]
    # 1e-60: what differentiating numerically with 50 digits leaves of an exact zero
    reference = torch.tensor(theirs, dtype=torch.float64)
    torch.testing.assert_close(ours.detach(), reference, rtol=LIBXC, atol=1e-40)


def test_gradcheck(generator: torch.Generator) -> None:
    """First and second derivatives, on both sides of α = 1 where the formula changes."""

    def random(low: float, high: float) -> Tensor:
        x = torch.rand(12, dtype=torch.float64, generator=generator)
        return (low + (high - low) * x).requires_grad_()

    for low, high in ((0.05, 0.95), (1.05, 3.0)):
        inputs = random(0.1, 3.0), random(low, high)
        assert gradcheck(enhancement, inputs) and gradgradcheck(enhancement, inputs)
    fields = random(0.5, 1.0), random(0.1, 0.5), random(2.0, 4.0)
    assert gradcheck(energy, fields) and gradgradcheck(energy, fields)


def test_interpolation_limits() -> None:
    alpha = torch.tensor([0.0, 1.0, 1e300], dtype=torch.float64)
    exact = torch.tensor([1.0, 0.0, -1 / B], dtype=torch.float64)
    torch.testing.assert_close(interpolation(alpha), exact, rtol=ROUNDING, atol=0)
    assert (interpolation(torch.linspace(0, 50, 5001)).diff() <= 0).all()


def test_interpolation_joins_twice_differentiably_at_alpha_one() -> None:
    """f ∝ (1 − α)³ there, from either side: f ≈ 8/(2 + b) (1 − α)³."""
    for side in (-1, 1):
        alpha = (1 + side * torch.tensor([1e-3, 1e-4], dtype=torch.float64)).requires_grad_()
        f = interpolation(alpha)
        leading = 8 / (2 + B) * (1 - alpha) ** 3
        torch.testing.assert_close(f, leading, rtol=5e-3, atol=0)  # next order: 1e-3
        (first,) = grad(f.sum(), alpha, create_graph=True)
        (second,) = grad(first.sum(), alpha)
        assert (first.abs() < 5e-6).all() and (second.abs() < 1e-2).all()


def test_bounds_hold_for_any_deorbitalizer() -> None:
    """F¹ − (F⁰ − F¹)/b ≤ F_x ≤ 1 + κ whatever α̃ a network predicts; F_x = 1 in the uniform gas."""
    p, alpha = grid_of((0.0, 1e-3, 0.3, 1.0, 30.0, 1e6, 1e300), (0.0, 0.3, 1.0, 3.0, 1e4, 1e300))
    f = enhancement(p, alpha)
    lowest = 1 - (KAPPA - KAPPA**2 / (KAPPA + C)) / B
    assert (f <= 1 + KAPPA).all() and (f >= lowest - ROUNDING).all()
    uniform = enhancement(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    assert uniform.item() == 1.0


def test_second_order_gradient_expansion() -> None:
    """At α = 1 and small p, F_x = 1 + (10/81) p: exact for a slowly varying density."""
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (slope,) = grad(enhancement(p, torch.ones_like(p)), p)
    assert slope.item() == pytest.approx(10 / 81, rel=ROUNDING)


def test_exact_exchange_energy_of_the_hydrogen_atom() -> None:
    """c = 0.14601 was fixed by E_x(H) = −5/16 hartree; E_x[ρ↑, 0] = ½ E_x[2ρ↑]."""
    r, weights = radial_quadrature()
    rho = 2 * torch.exp(-2 * r) / torch.pi
    sigma, tau = 4 * rho**2, rho / 2
    e_x = (weights @ energy(rho, sigma, tau)).item() / 2
    assert weights @ rho == pytest.approx(2, rel=QUADRATURE)
    assert e_x == pytest.approx(-5 / 16, abs=PRINTED_CONSTANT)


@pytest.mark.parametrize("scale", [0.5, 2.0, 10.0])
def test_uniform_coordinate_scaling(water: OrbitalDensity, scale: float) -> None:
    """ρ_λ(r) = λ³ρ(λr): E_x[ρ_λ] = λ E_x[ρ], pointwise e_x → λ⁴ e_x."""
    ((rho, sigma, tau),) = real_densities(water)
    scaled = energy(scale**3 * rho, scale**8 * sigma, scale**5 * tau)
    torch.testing.assert_close(scaled, scale**4 * energy(rho, sigma, tau), rtol=LIBXC, atol=0)


def test_finite_at_absurd_inputs() -> None:
    huge = (0.0, 1e-300, 1e-30, 1.0, 1e30, 1e150)
    x = [a.requires_grad_() for a in grid_of(huge, huge)]
    for v in (enhancement(*x), *grad(enhancement(*x).sum(), x)):
        assert v.isfinite().all()
    fields = [a.requires_grad_() for a in grid_of((0.0, 1e-20, 1e-8, 1e6), huge[:4], huge[:4])]
    e = energy(*fields)
    assert e.isfinite().all() and (e[fields[0] == 0] == 0).all()


def test_names_are_libxcs() -> None:
    parent = PARENTS["ms2"]
    ours, parts = (
        dft.libxc.parse_xc(x) for x in (parent.xc, f"{parent.exchange},{parent.correlation}")
    )
    assert ours == parts
    assert dft.libxc.xc_type(parent.correlation) == "GGA"


def test_hydrogen_density_needs_no_orbitals() -> None:
    """One orbital: α = 0 pointwise, so that F_x = F⁰."""
    rho, sigma, tau, _ = hydrogen_atom()
    p = reduced_gradient_squared(rho, sigma)
    f0 = enhancement(p, torch.zeros_like(p))
    torch.testing.assert_close(energy(rho, sigma, tau), lda_exchange(rho) * f0, rtol=LIBXC, atol=0)
