"""A parent whose correlation needs τ: it gets τ̃, and its derivative goes through the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyscf import dft, gto

import taufree
from networks import random_functional
from reference import OrbitalDensity
from taufree.functional import Functional
from taufree.hosts.exchange_correlation import ExchangeCorrelation, libxc_eff
from tolerances import FINITE_DIFFERENCE, SCF, SUM_ROUNDING


def on_grid(functional: Functional, system: OrbitalDensity) -> tuple[ExchangeCorrelation, ...]:
    d = system.density
    rho = torch.cat([d.rho[:, None], d.grad_rho.mT], 1).numpy()
    parts = (x.numpy() for x in (d.coords, d.weights, d.centers))
    return ExchangeCorrelation(functional, *parts), rho


@pytest.mark.parametrize("name", ["water", "hydroxyl"])
def test_potential_is_the_derivative_of_the_energy(
    name: str, request: pytest.FixtureRequest
) -> None:
    """Along ρ → ρ(1 + t u) with smooth random u, correlation and its τ̃ included."""
    functional = random_functional(parent="r2scan")
    xc, rho = on_grid(functional, request.getfixturevalue(name))
    rng = np.random.default_rng(5)
    wave = np.sin(rng.normal(size=(len(rho), 3)) @ xc.coords.T)  # (n_spin, n_points)
    direction = rho * wave[:, None] / 3
    derivative = float((xc(rho)[1] * direction).sum())
    h = 5e-4
    steps = {k: xc(rho + k * h * direction)[0] @ xc.weights for k in (-2, -1, 1, 2)}
    numeric = (8 * (steps[1] - steps[-1]) - (steps[2] - steps[-2])) / (12 * h)
    assert derivative == pytest.approx(numeric, rel=FINITE_DIFFERENCE)


def test_correlation_is_libxcs_at_the_models_tau(hydroxyl: OrbitalDensity) -> None:
    """τ̃↑ = ½ τ̃[2ρ↑], the same spin scaling as exchange."""
    functional = random_functional(parent="r2scan")
    xc, rho = on_grid(functional, hydroxyl)
    energy = xc(rho)[0] @ xc.weights
    d = hydroxyl.density
    geometry = functional.geometry(d.coords, d.centers)
    tau, exchange = [], 0.0
    for channel in zip(2 * d.rho, 2 * d.grad_rho, strict=True):
        tau.append(functional.tau(*channel, d.weights, geometry) / 2)
        with torch.no_grad():
            e_x = functional.energy_density(*channel, d.weights, geometry)
        exchange += float(e_x @ d.weights) / 2
    fields = np.concatenate([rho, torch.stack(tau)[:, None].numpy()], 1)
    correlation = libxc_eff("MGGA_C_R2SCAN", fields)[0] @ (d.rho.sum(0) * d.weights).numpy()
    assert energy == pytest.approx(exchange + correlation, rel=SUM_ROUNDING)


@pytest.mark.parametrize(("atoms", "spin"), [("H 0 0 0; H 0 0 0.74", 0), ("H 0 0 0", 1)])
def test_one_orbital_needs_no_network(atoms: str, spin: int) -> None:
    """With α̃ = 0, exact for one orbital, H2 and H have r²SCAN's own energy."""
    functional = random_functional(parent="r2scan")
    for expert in functional.network.experts.experts:
        torch.nn.init.zeros_(expert[-1].weight)
        torch.nn.init.constant_(expert[-1].bias, -1e9)
    mol = gto.M(atom=atoms, basis="6-31g", spin=spin, verbose=0)
    parent = (dft.UKS if spin else dft.RKS)(mol, xc="R2SCAN")
    parent.grids.level = 1
    ours = taufree.deorbitalize(parent, functional)
    assert ours.kernel() == pytest.approx(parent.kernel(), abs=10 * SCF)
    assert ours.converged
