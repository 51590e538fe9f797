from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.polynomial import legendre
from scipy.optimize import brentq

from taufree.evaluation.closed_forms import ExactDensity, jellium_slab, one_electron
from taufree.evaluation.errors import exchange_energy
from taufree.physics.descriptors import (
    K_F,
    contracted_gradient,
    tau_uniform,
    tau_weizsaecker,
)
from taufree.physics.parents import PARENTS

MS2 = PARENTS["ms2"]
BECKE = 1e-6
"""Relative: one electron on a Becke grid of level 3."""


def atom(charge: float = 1.0) -> ExactDensity:
    return one_electron(torch.zeros(1, 3, dtype=torch.float64), charge)


def h2_plus(r: float) -> ExactDensity:
    return one_electron(torch.tensor([[0, 0, 0], [0, 0, r]], dtype=torch.float64))


def test_slab_is_the_sum_over_its_orbitals() -> None:
    """Fermi level by bisection, every in-plane momentum by quadrature."""
    r_s = 3.0
    slab = jellium_slab(r_s, wavelengths=2)
    z = slab.density.coords[:, 2].numpy()
    k_f = K_F * (3 / (4 * math.pi)) ** (1 / 3) / r_s
    length = 4 * math.pi / k_f + 3 * math.pi / (4 * k_f)
    k = np.arange(1, 50) * math.pi / length
    electrons = 4 * math.pi / k_f * k_f**3 / (3 * math.pi**2)
    square = brentq(
        lambda e: (e - k**2).clip(0).sum() / (2 * math.pi) - electrons, 0, 4 * k_f**2, xtol=1e-15
    )
    x, w = legendre.leggauss(20)
    rho, tau = np.zeros_like(z), np.zeros_like(z)
    for k_n in k[k**2 < square]:
        edge = math.sqrt(square - k_n**2)
        q, dq = (1 + x) * edge / 2, w * edge / 2
        states = q * dq / math.pi  # of both spins, in a ring of radius q
        sine, cosine = (math.sqrt(2 / length) * f(k_n * z) for f in (np.sin, np.cos))
        rho += states.sum() * sine**2
        tau += (states @ q**2 * sine**2 + states.sum() * k_n**2 * cosine**2) / 2
    density = slab.density
    sigma = contracted_gradient(density.grad_rho)
    found = tau_weizsaecker(density.rho, sigma) + slab.alpha * tau_uniform(density.rho)
    np.testing.assert_allclose(density.rho[0], rho, rtol=1e-9)
    np.testing.assert_allclose(found[0], tau, rtol=1e-9)
    assert float(density.rho[0] @ density.weights) == pytest.approx(electrons, rel=1e-12)


def test_derivatives_of_a_slab_are_those_of_its_density() -> None:
    slab = jellium_slab(4.0, wavelengths=1, n_points=100)
    z, rho = slab.density.coords[:, 2].numpy(), slab.density.rho[0].numpy()
    fit = legendre.Legendre.fit(z, rho, 60)  # a handful of oscillations: exact to rounding
    scale = np.abs(fit.deriv(2)(z)).max()
    np.testing.assert_allclose(slab.density.grad_rho[0, :, 2], fit.deriv()(z), atol=1e-9 * scale)
    np.testing.assert_allclose(slab.lapl[0], fit.deriv(2)(z), atol=1e-7 * scale)
    assert not slab.density.grad_rho[..., :2].any()


def test_thick_slab_is_uniform_inside() -> None:
    """Friedel oscillations, some 1/(k_F z)², are what is left at the middle."""
    slab = jellium_slab(2.0, wavelengths=40, n_points=2000)
    middle = slice(990, 1010)
    bulk = torch.full((20,), 3 / (4 * math.pi * 2.0**3), dtype=torch.float64)
    left = 1 / (math.pi * 40) ** 2
    torch.testing.assert_close(slab.density.rho[0, middle], bulk, rtol=2 * left, atol=0)
    torch.testing.assert_close(slab.alpha[0, middle], torch.ones(20).double(), rtol=0, atol=0.01)


def test_slab_energy_is_converged() -> None:
    coarse, fine = (jellium_slab(2.0, n_points=n) for n in (800, 1600))
    energies = [exchange_energy(MS2, slab.density, slab.alpha) for slab in (coarse, fine)]
    assert energies[0] == pytest.approx(energies[1], rel=1e-6)


@pytest.mark.parametrize("exact", [atom(), atom(3.0), h2_plus(2.0), h2_plus(8.0)])
def test_one_electron_is_one_electron(exact: ExactDensity) -> None:
    density = exact.density
    n_up, n_down = (density.rho @ density.weights).tolist()
    assert n_up == pytest.approx(1, rel=BECKE) and n_down == 0
    curvature = (exact.lapl @ density.weights)[0]  # ∫∇²ρ = 0, of terms of the size of 4Z²
    assert abs(curvature) < 4e-5 * 9
    assert not exact.alpha.any()


def test_hydrogen_atoms_are_known() -> None:
    """T_W = Z²/2, and MS2's c was chosen for E_x = −5Z/16."""
    for charge in (1.0, 2.0, 3.0):
        exact = atom(charge)
        rho, sigma = exact.density.rho[0], contracted_gradient(exact.density.grad_rho[0])
        kinetic = float(tau_weizsaecker(rho, sigma) @ exact.density.weights)
        assert kinetic == pytest.approx(charge**2 / 2, rel=BECKE)
        e_x = exchange_energy(MS2, exact.density, exact.alpha)
        assert e_x == pytest.approx(-5 / 16 * charge, rel=5e-5)


def test_stretched_bond_is_two_half_electrons() -> None:
    far, hydrogen = h2_plus(25.0), atom()
    half = [hydrogen.density.rho / 2, hydrogen.density.grad_rho / 2]
    density = type(hydrogen.density)(
        hydrogen.density.coords, hydrogen.density.weights, *half, hydrogen.density.centers
    )
    expected = 2 * exchange_energy(MS2, density, hydrogen.alpha)
    assert exchange_energy(MS2, far.density, far.alpha) == pytest.approx(expected, rel=1e-5)
