"""The record that flows from a host to the functional."""

from __future__ import annotations

import torch

from reference import OrbitalDensity


def test_moves_and_casts_every_tensor(hydroxyl: OrbitalDensity) -> None:
    single = hydroxyl.density.to(torch.float32)
    for name in ("coords", "weights", "rho", "grad_rho", "centers"):
        assert getattr(single, name).dtype == torch.float32
        assert getattr(hydroxyl.density, name).dtype == torch.float64
    assert single.lattice is None
    assert single.n_spin == hydroxyl.density.n_spin == 2


def test_holds_all_electrons(water: OrbitalDensity, hydroxyl: OrbitalDensity) -> None:
    # grid level 0 misses 6e-3 electrons of water
    for system, electrons in ((water, [10]), (hydroxyl, [5, 4])):
        counted = system.density.rho @ system.density.weights
        torch.testing.assert_close(counted, torch.tensor(electrons).double(), rtol=0, atol=1e-2)
