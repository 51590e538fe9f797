"""Drawn grid points stand for the whole grid."""

from __future__ import annotations

import pytest
import torch

from taufree.data.store import ReferenceDensity
from taufree.functional import Functional
from taufree.model.config import ModelConfig
from taufree.model.network import Network
from taufree.training.config import TrainingConfig
from taufree.training.losses import Losses
from taufree.training.samples import FACTORS, draw, samples_of, scaled_record

CONFIG = ModelConfig()


def test_spin_channels_are_unpolarized_densities(lithium: list[ReferenceDensity]) -> None:
    """Twice each spin density: 4 and 2 electrons; half of each one's energy is the parent's."""
    samples = list(samples_of(lithium[0], CONFIG))
    assert [round(s.electrons, 2) for s in samples] == [4.0, 2.0]
    energy = sum(s.share * (s.exc @ s.weights).item() for s in samples)
    assert energy == pytest.approx(lithium[0].e_x.item(), abs=1e-8)


def test_draw_is_unbiased(lithium: list[ReferenceDensity]) -> None:
    """The drawn estimate of N and E_x^LDA meets the integral within four standard errors."""
    sample = next(iter(samples_of(lithium[0], CONFIG)))
    batch = draw([sample], 20_000, CONFIG, torch.Generator().manual_seed(0))
    values = batch.weights * batch.lda * 20_000
    exact = (sample.weights @ sample.lda).item()
    assert abs(values.mean().item() - exact) < 4 * values.std().item() / 20_000**0.5


def test_losses_see_the_functional(lithium: list[ReferenceDensity], config: TrainingConfig) -> None:
    """On all points the training path gives the energy density of the functional itself."""
    torch.manual_seed(3)
    network = Network(CONFIG)
    record = lithium[0]
    sample = next(iter(samples_of(record, CONFIG)))
    exc, _ = Losses(network, config).exchange(draw([sample], None, CONFIG))
    functional = Functional(network)
    density = record.density
    rho, grad_rho = 2 * density.rho[0], 2 * density.grad_rho[0]
    geometry = functional.geometry(density.coords, density.centers)
    reference = functional.energy_density(rho, grad_rho, density.weights, geometry)
    held = reference != 0
    assert torch.allclose(exc, reference[held], rtol=2e-5, atol=1e-9)  # float32 inside


def test_energy_loss_has_no_bias_from_the_draw(
    lithium: list[ReferenceDensity], config: TrainingConfig
) -> None:
    """The product of the halves averages to (ΔE_x/N)², where a plain square would add variance."""
    torch.manual_seed(3)
    losses = Losses(Network(CONFIG), config)
    sample = next(iter(samples_of(lithium[0], CONFIG)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        whole = draw([sample], None, CONFIG)
        delta = ((losses.exchange(whole)[0] - whole.exc) @ whole.weights / sample.electrons).item()
        products = []
        for _ in range(200):
            batch = draw([sample], 60, CONFIG, generator)
            error = (losses.exchange(batch)[0] - batch.exc) * batch.weights / sample.electrons
            halves = [2 * error[batch.half == h].sum() for h in (0, 1)]
            products.append((halves[0] * halves[1]).item())
    values = torch.tensor(products)
    assert abs(values.mean().item() - delta**2) < 4 * values.std().item() / len(values) ** 0.5


def test_scaled_record_obeys_uniform_scaling(lithium: list[ReferenceDensity]) -> None:
    """E_x[ρ_λ] = λE_x[ρ], and the parent's formula agrees at the scaled density and the same α."""
    record = lithium[0]
    scaled = scaled_record(record)
    factor = float((scaled.e_x / record.e_x).item())
    assert factor in [pytest.approx(f) for f in FACTORS]
    before, after = (next(iter(samples_of(r, CONFIG))) for r in (record, scaled))
    assert after.electrons == pytest.approx(before.electrons)
    torch.testing.assert_close(after.p, before.p)
    torch.testing.assert_close(after.exc / after.lda, before.exc / before.lda)
    assert after.kind == "scaled"
