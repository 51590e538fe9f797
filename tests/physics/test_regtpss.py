"""The correlation beside MS2 against libxc, spin-resolved, in its limits, and by gradcheck."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import grad, gradcheck

from libxc_agreement import grid_of
from reference import OrbitalDensity
from taufree.hosts.exchange_correlation import libxc_eff
from taufree.physics.descriptors import K_F, contracted_gradient
from taufree.physics.parents import PARENTS
from taufree.physics.regtpss import energy_density, uniform_gas
from tolerances import LIBXC


def evaluate(rho: Tensor, grad_rho: Tensor) -> Tensor:
    """e_c of spin densities (2, n_points) and their gradients (2, n_points, 3)."""
    total = rho.sum(0)
    return energy_density(total, (rho[0] - rho[1]) / total, contracted_gradient(grad_rho.sum(0)))


def libxc(rho: Tensor, grad_rho: Tensor) -> tuple[Tensor, Tensor]:
    """e_c and its derivatives by ρ and ∇ρ, (2, 4, n_points)."""
    fields = torch.cat([rho[:, None], grad_rho.mT], 1).numpy()
    e, v = libxc_eff(PARENTS["ms2"].correlation, np.ascontiguousarray(fields))
    return rho.sum(0) * torch.from_numpy(e), torch.from_numpy(v)


def assert_matches_libxc(rho: Tensor, grad_rho: Tensor) -> None:
    rho, grad_rho = rho.requires_grad_(), grad_rho.requires_grad_()
    e = evaluate(rho, grad_rho)
    first = grad(e.sum(), (rho, grad_rho))
    theirs, v = libxc(rho.detach(), grad_rho.detach())
    # H → −ε_c^unif for large gradients: on the scale of the uniform gas
    zero = torch.zeros_like(grad_rho.detach())
    scale = evaluate(rho.detach(), zero).abs()
    assert ((e.detach() - theirs).abs() <= LIBXC * scale).all()
    assert ((first[0] - v[:, 0]).abs() * rho.detach() <= 10 * LIBXC * scale).all()
    size = grad_rho.detach().norm(dim=2)
    assert ((first[1] - v[:, 1:].mT).norm(dim=2) * size <= 10 * LIBXC * scale).all()


def test_matches_libxc_on_real_densities(water: OrbitalDensity, hydroxyl: OrbitalDensity) -> None:
    for density in (water.density, hydroxyl.density):
        rho, grad_rho = density.rho, density.grad_rho
        if density.n_spin == 1:
            rho, grad_rho = rho.expand(2, -1) / 2, grad_rho.expand(2, -1, -1) / 2
        held = rho.amin(0) > 1e-8
        assert held.sum() > 1000
        assert_matches_libxc(rho[:, held].clone(), grad_rho[:, held].clone())


def test_matches_libxc_at_the_edges() -> None:
    rho, s, zeta = grid_of((1e-8, 1e-4, 1.0, 1e4), (0.0, 1e-3, 1.0, 10.0), (0.0, 1e-6, 0.5, 0.99))
    spins = torch.stack([1 + zeta, 1 - zeta]) * rho / 2
    size = 2 * K_F * s * rho ** (4 / 3)
    direction = torch.tensor([[0.6], [0.4]]).double()
    along = (direction * size)[..., None] * torch.tensor([0.0, 0.6, 0.8])
    assert_matches_libxc(spins, along)


def test_full_polarization_is_finite() -> None:
    rho = torch.tensor([[1.0, 1e-2], [0.0, 0.0]]).double()
    grad_rho = torch.zeros(2, 2, 3).double()
    theirs, _ = libxc(rho, grad_rho)
    rho, grad_rho = rho.requires_grad_(), grad_rho.requires_grad_()
    e = evaluate(rho, grad_rho)
    torch.testing.assert_close(e.detach(), theirs, rtol=LIBXC, atol=0)
    assert all(v.isfinite().all() for v in grad(e.sum(), (rho, grad_rho)))


def test_gradient_correlation_vanishes_for_large_gradients() -> None:
    """H → −ε_c^unif: no correlation left."""
    one = torch.ones(1).double()
    left = energy_density(one, 0 * one, 1e12 * one)
    assert left.abs() < 1e-6 * uniform_gas((3 / (4 * torch.pi * one)) ** (1 / 3), one, one).abs()


@pytest.mark.parametrize("zeta", [0.0, -0.7])
def test_gradcheck(zeta: float) -> None:
    values = (x * torch.ones(1).double() for x in (0.3, zeta, 0.2))
    assert gradcheck(energy_density, [x.requires_grad_() for x in values])
