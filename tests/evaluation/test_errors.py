from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from taufree.data.store import ReferenceDensity
from taufree.errors import UserError
from taufree.evaluation.errors import (
    MHA,
    classic_alpha,
    errors,
    model_alpha,
    routing,
    spin_scaled,
)
from taufree.functional import Functional, hold
from taufree.physics.descriptors import iso_orbital_indicator
from taufree.physics.kinetic import DEORBITALIZERS, tfvw
from taufree.physics.parents import PARENTS, energy_density

Record = Callable[[str], ReferenceDensity]

EXACT_MHA = 1e-5
"""Energy and potential where ρ < 1e-9 bohr⁻³, which the functional leaves out, and libxc's
agreement (5e-15 of e_x)."""


@pytest.mark.parametrize("name", ["LiF", "CH", "H"])
def test_parents_own_alpha_has_no_error(record: Record, name: str) -> None:
    reference = record(name)
    rho, sigma, _ = hold(*spin_scaled(reference.density))
    alpha = iso_orbital_indicator(rho, sigma, reference.density.n_spin * reference.tau)
    found = errors(reference, alpha)
    assert max(map(abs, found.values())) < EXACT_MHA


@pytest.mark.parametrize("name", ["H", "H2", "He"])
def test_one_orbital_is_exact_at_zero_alpha(record: Record, name: str) -> None:
    found = errors(record(name), torch.zeros_like(record(name).tau))
    assert max(map(abs, found.values())) < EXACT_MHA


def test_measures_are_those_of_their_definitions(record: Record) -> None:
    reference = record("CH")
    alpha = classic_alpha(tfvw, reference)
    assert torch.equal(alpha, torch.ones_like(reference.tau))
    found = errors(reference, alpha)
    assert found["l1_mha"] >= abs(found["de_x_mha"])
    assert found["exc_mha"] == pytest.approx(found["l1_mha"] / reference.n_electrons, rel=1e-5)
    # MS2's f(α) has a triple zero at α = 1: there ∂e_x/∂τ = 0, and the parent's own is the error
    weighted = reference.density.rho * reference.vtau.abs() @ reference.density.weights
    assert found["vtau"] == pytest.approx(float(weighted.sum()) / reference.n_electrons, rel=1e-5)


def test_partial_derivatives_are_those_of_libxc(record: Record) -> None:
    reference = record("LiF")
    rho, sigma = (x[0, reference.density.rho[0] > 1e-6] for x in spin_scaled(reference.density))
    tau, exc, vrho, vsigma, vtau = (
        getattr(reference, key)[0, reference.density.rho[0] > 1e-6]
        for key in ("tau", "exc", "vrho", "vsigma", "vtau")
    )
    variables = [x.clone().requires_grad_() for x in (rho, sigma, tau)]
    energy = energy_density(PARENTS["ms2"], *variables)
    for found, exact in zip(
        [energy, *torch.autograd.grad(energy.sum(), variables)],
        [exc, vrho, vsigma, vtau],
        strict=True,
    ):
        # where derivatives cancel, α's own rounding shows: 1e-16 / α
        torch.testing.assert_close(found.detach(), exact, rtol=1e-9, atol=1e-11)


def test_model_is_what_the_reference_form_says(record: Record, functional: Functional) -> None:
    reference = record("Li")
    density = reference.density
    alpha, gates = model_alpha(functional, reference.density)
    geometry = functional.geometry(density.coords, density.centers)
    energy = 0.0
    for spin in (0, 1):
        rho, grad_rho = 2 * density.rho[spin], 2 * density.grad_rho[spin]
        with torch.no_grad():
            e = functional.energy_density(rho, grad_rho, density.weights, geometry)
        energy += float(e @ density.weights) / 2
    expected = MHA * (energy - float(reference.e_x))
    assert errors(reference, alpha)["de_x_mha"] == pytest.approx(expected, abs=1e-7)

    electrons, active = routing(reference, gates)
    assert len(electrons) == functional.network.config.n_experts and min(electrons) >= 0
    assert sum(electrons) == pytest.approx(reference.n_electrons, rel=1e-5)
    assert active == 2


def test_record_without_laplacian_is_refused(record: Record) -> None:
    reference = ReferenceDensity(**{**vars(record("H2")), "lapl": None})
    with pytest.raises(UserError, match="∇²ρ"):
        classic_alpha(DEORBITALIZERS["PCopt"], reference)
