"""Analytic deorbitalizers against libxc's kinetic functionals and their known limits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from reference import Libxc, OrbitalDensity
from taufree.physics.descriptors import (
    reduced_gradient_squared,
    reduced_laplacian,
    tau_uniform,
    tau_weizsaecker,
)
from taufree.physics.kinetic import DEORBITALIZERS, ge2
from tolerances import LIBXC, ROUNDING

IN_LIBXC = {
    "PC07": "MGGA_K_PC07",
    "PCopt": "MGGA_K_PC07_OPT",
    "CSK1": "MGGA_K_CSK1",
    "CSK4": "MGGA_K_CSK4",
}
UNIFORM_ALPHA = {name: 1.0 for name in DEORBITALIZERS} | {"PCopt": 0.9065}
"""f_ab joins from z = a/40 to 39a/40; PCopt's a = 1.784720 puts the uniform gas, z = 1, inside."""
SECOND_ORDER = ("GE2", "PC07", "CSK1", "CSK4")
"""Those that keep the second-order gradient expansion of τ."""


def scalars(p: float, q: float) -> tuple[Tensor, Tensor]:
    return torch.tensor([p], dtype=torch.float64), torch.tensor([q], dtype=torch.float64)


@pytest.mark.parametrize("name", IN_LIBXC)
def test_matches_libxc(name: str, water: OrbitalDensity, hydroxyl: OrbitalDensity) -> None:
    for system in (water, hydroxyl):
        for fields in system.unpolarized:
            rho, sigma, tau, lapl = (x[fields[0] > 1e-8] for x in fields)
            p, q = reduced_gradient_squared(rho, sigma), reduced_laplacian(rho, lapl)
            ours = tau_weizsaecker(rho, sigma) + DEORBITALIZERS[name](p, q) * tau_uniform(rho)
            theirs = Libxc(IN_LIBXC[name]).energy(rho, sigma, lapl, tau)
            # the fourth-order terms of PC07 cancel down from q² where the density decays
            size = theirs.abs() + (1 + p + q.abs()) ** 2 / (1 + p) * tau_uniform(rho)
            assert ((ours - theirs).abs() <= LIBXC * size).all()


def test_second_order_expansion_matches_libxc(water: OrbitalDensity) -> None:
    """GE2 where it is not clipped."""
    rho, sigma, tau, lapl = (x[water.unpolarized[0][0] > 1e-3] for x in water.unpolarized[0])
    alpha = ge2(reduced_gradient_squared(rho, sigma), reduced_laplacian(rho, lapl))
    theirs = Libxc("MGGA_K_GEA2").energy(rho, sigma, lapl, tau)
    ours = tau_weizsaecker(rho, sigma) + alpha * tau_uniform(rho)
    free = alpha > 0
    assert 0.1 < free.double().mean() < 0.9
    torch.testing.assert_close(ours[free], theirs[free], rtol=1e2 * LIBXC, atol=0)  # cancels
    assert (alpha[~free] == 0).all()
    assert (theirs <= tau_weizsaecker(rho, sigma) * (1 + ROUNDING))[~free].all()


@pytest.mark.parametrize("name", DEORBITALIZERS)
def test_uniform_gas(name: str) -> None:
    alpha = DEORBITALIZERS[name](*scalars(0.0, 0.0)).item()
    digits = 1e-4 if name == "PCopt" else ROUNDING
    assert alpha == pytest.approx(UNIFORM_ALPHA[name], abs=digits)


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_slowly_varying_density(name: str) -> None:
    """α → 1 + 20q/9 − 40p/27 up to second order in the gradients (p and q are of that order)."""
    for p, q in ((1e-4, 2e-4), (2e-4, -1e-4), (1e-4, 0.0)):
        alpha = DEORBITALIZERS[name](*scalars(p, q)).item()
        assert alpha - 1 == pytest.approx(20 * q / 9 - 40 * p / 27, abs=1e-6)  # fourth order


@pytest.mark.parametrize("name", ["GE2", "CSK1", "CSK4"])
def test_one_orbital_limit_at_a_nucleus(name: str) -> None:
    """q → −∞ as −Z/r: the density is one 1s orbital's there, α = 0."""
    alpha = DEORBITALIZERS[name](*scalars(0.14, -1e4))  # p at the hydrogen nucleus
    # CSK1 goes as 1/|z|, z = 20q/9: 1 + z(1 − e^{1/z}) = −1/(2z)
    assert 0 <= alpha.item() <= 3e-5


@pytest.mark.parametrize("name", ["PC07", "PCopt"])
def test_fourth_order_saturates(name: str) -> None:
    """M → 1 + F_W for |q| → ∞: the value of the uniform gas, also at a nucleus (a known flaw).

    For p → ∞ at q = 0, M → F_W + 1 + (5p/3)(1/9)(405/8p) = F_W + 83/8.
    """
    limit = UNIFORM_ALPHA[name]
    for q in (-1e6, 1e6):
        assert DEORBITALIZERS[name](*scalars(0.14, q)).item() == pytest.approx(limit, abs=1e-4)
    assert DEORBITALIZERS[name](*scalars(1e8, 0.0)).item() == pytest.approx(83 / 8, abs=1e-4)


def test_large_gradients_without_curvature() -> None:
    """α → 0 for CSK, whose z = −40p/27 → −∞; α = 1 always for TFvW."""
    for name in ("CSK1", "CSK4"):
        assert DEORBITALIZERS[name](*scalars(1e6, 0.0)).item() == pytest.approx(0, abs=1e-6)
    assert DEORBITALIZERS["TFvW"](*scalars(1e6, 0.0)).item() == 1


@pytest.mark.parametrize("name", DEORBITALIZERS)
def test_never_below_the_weizsaecker_bound(name: str) -> None:
    p, q = torch.meshgrid(
        torch.logspace(-12, 12, 97, dtype=torch.float64),
        torch.cat([-(x := torch.logspace(-12, 8, 81, dtype=torch.float64)), x]),
        indexing="ij",
    )
    p, q = p.clone().requires_grad_(), q.clone().requires_grad_()
    alpha = DEORBITALIZERS[name](p, q)
    assert alpha.isfinite().all() and (alpha >= 0).all()
    if alpha.requires_grad:
        for slope in torch.autograd.grad(alpha.sum(), (p, q), allow_unused=True):
            assert slope.isfinite().all()


@pytest.mark.parametrize("name", ["PC07", "PCopt", "CSK1", "CSK4"])
def test_gradcheck(name: str) -> None:
    """Where z lies inside the join and on the formula's smooth sides."""
    p, q = torch.tensor([0.1, 0.3, 0.02, 1.0]), torch.tensor([0.1, -0.1, 0.2, 0.5])
    assert gradcheck(
        DEORBITALIZERS[name], (p.double().requires_grad_(), q.double().requires_grad_())
    )
