"""Drawn grid points stand for the whole grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from networks import random_network
from taufree.data.store import ReferenceDensity
from taufree.functional import Functional
from taufree.model.config import ModelConfig
from taufree.physics.parents import ms2
from taufree.training.config import TrainingConfig
from taufree.training.losses import Losses
from taufree.training.samples import FACTORS, Densities, families_of, scaled_record

CONFIG = ModelConfig()


@pytest.fixture(scope="module")
def densities(lithium: list[ReferenceDensity]) -> Densities:
    return Densities(families_of(lithium, CONFIG), CONFIG.cutoff, "cpu")


def test_spin_channels_are_unpolarized_densities(lithium: list[ReferenceDensity]) -> None:
    """Twice each spin density: 4 and 2 electrons; half of each one's energy is the parent's."""
    families = list(families_of(lithium, CONFIG))
    assert [round(f.members[0].electrons, 2) for f in families] == [4.0, 2.0]
    energy = 0.0
    for family in families:
        p, lda, alpha = family.members[0].known.double().unbind(1)
        energy += family.share * (family.weights @ (lda * ms2.enhancement(p, alpha)))
    first = next(record for record in lithium if record.density_kind == "converged")
    assert float(energy) == pytest.approx(first.e_x.item(), abs=1e-6)  # stored in float32


def test_draw_is_unbiased(densities: Densities) -> None:
    """The drawn estimates of N and E_x^LDA meet the integrals within four standard errors."""
    n = 20_000
    drawn, whole = densities.draw(np.array([0]), n, seed=1), densities.whole(0)
    for power in (0.75, 1.0):
        values = drawn.weights[0] * drawn.known[0, :, 1].abs() ** power * n
        exact = float((whole.weights * whole.known[..., 1].abs() ** power).sum())
        assert abs(values.mean().item() - exact) < 4 * values.std().item() / n**0.5


def test_rows_of_a_pair_are_two_densities_at_the_same_points(densities: Densities) -> None:
    batch = densities.draw(np.array([0, 1, 0]), 64, seed=2)
    assert len(batch.base) == 3
    points = torch.cat([group.points for group in batch.groups])
    torch.testing.assert_close(points[batch.base], points[batch.other])
    torch.testing.assert_close(batch.weights[batch.base], batch.weights[batch.other])
    assert (batch.known[batch.base] != batch.known[batch.other]).any(1).any(1).all()
    assert (batch.moved > 0).all()


def test_losses_see_the_functional(
    lithium: list[ReferenceDensity], densities: Densities, config: TrainingConfig
) -> None:
    """On all points the training path gives the energy density of the functional itself."""
    network = random_network(dtype=torch.float32)
    record = next(record for record in lithium if record.density_kind == "converged")
    whole = densities.whole(0)
    p, lda, alpha = whole.known[0].double().unbind(1)
    exc = Losses(network, config).error(whole)[0] + lda * ms2.enhancement(p, alpha)
    functional = Functional(network)
    density = record.density
    rho, grad_rho = 2 * density.rho[0], 2 * density.grad_rho[0]
    geometry = functional.geometry(density.coords, density.centers)
    reference = functional.energy_density(rho, grad_rho, density.weights, geometry)
    torch.testing.assert_close(exc, reference, rtol=1e-4, atol=1e-7)  # float32 inside


def test_a_batch_is_its_densities_side_by_side(
    densities: Densities, config: TrainingConfig
) -> None:
    """Rows do not see each other, whatever fills them up."""
    losses = Losses(random_network(dtype=torch.float32), config)
    together = densities.draw(np.array([0, 1]), 50, seed=3)
    alone = densities.draw(np.array([0]), 50, seed=3)
    torch.testing.assert_close(together.weights[0], alone.weights[0])
    first, second = losses.alpha(together)[0][0], losses.alpha(alone)[0][0]
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_energy_loss_has_no_bias_from_the_draw(
    densities: Densities, config: TrainingConfig
) -> None:
    """The product of the halves averages to (ΔE_x/N)², where a plain square would add variance."""
    losses = Losses(random_network(roughness=1.0, dtype=torch.float32), config)
    with torch.no_grad():
        whole = densities.whole(0)
        error = losses.error(whole) * whole.weights
        delta = (error.sum() / whole.electrons).item()
        products = []
        for seed in range(200):
            batch = densities.draw(np.array([0]), 60, seed)
            error = losses.error(batch) * batch.weights
            error = error[0] / batch.electrons[0]
            products.append((4 * error[0::2].sum() * error[1::2].sum()).item())
    values = torch.tensor(products)
    assert abs(values.mean().item() - delta**2) < 4 * values.std().item() / len(values) ** 0.5


def test_scaled_record_obeys_uniform_scaling(lithium: list[ReferenceDensity]) -> None:
    """E_x[ρ_λ] = λE_x[ρ]: the scaled density has the same p and α at every point."""
    record = lithium[0]
    scaled = scaled_record(record)
    factor = float((scaled.e_x / record.e_x).item())
    assert factor in [pytest.approx(f) for f in FACTORS]
    before, after = (next(iter(families_of([r], CONFIG))).members[0] for r in (record, scaled))
    assert after.electrons == pytest.approx(before.electrons)
    (p0, _, alpha0), (p1, _, alpha1) = (m.known.unbind(1) for m in (before, after))
    torch.testing.assert_close(p1, p0)
    torch.testing.assert_close(alpha1, alpha0)
