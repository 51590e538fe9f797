"""Densities that many tests share; each is calculated once."""

from __future__ import annotations

import pytest
import torch

from reference import OrbitalDensity, hydroxyl_radical, orbital_density, water_molecule

# tests run side by side, and idle threads spin; compiled kernels follow PyTorch
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def water() -> OrbitalDensity:
    """A closed shell: Hartree-Fock density of H2O."""
    return orbital_density(water_molecule().RHF().run())


@pytest.fixture(scope="session")
def hydroxyl() -> OrbitalDensity:
    """An open shell: Hartree-Fock spin densities of OH."""
    return orbital_density(hydroxyl_radical().UHF().run())


@pytest.fixture
def generator() -> torch.Generator:
    """Random numbers, the same in every run and whatever ran before."""
    return torch.Generator().manual_seed(20130114)
