"""Errors of a deorbitalizer at one density of the parent.

A deorbitalizer is an α̃(r), which the parent's analytic form turns into an energy and, at
τ̃ = τ_W + α̃ τ_unif, into the partial derivatives that a self-consistent calculation sees. They are
compared with libxc's at the orbitals' τ. Spin channels are scaled, E_x = ½ Σσ E_x[2ρσ], and the
integrals below run over both in that sense.

================= ======== ===================================================================
error             unit     definition
================= ======== ===================================================================
de_x_mha          mHa      ΔE_x = ∫ Δe_x, signed
l1_mha            mHa      L1 = ∫ |Δe_x|
exc_mha           mHa      ∫ ρ|Δε_x| / ∫ρ of ε_x = e_x/ρ: L1 per electron
vrho_mha          mHa      ∫ ρ|Δv_ρ| / ∫ρ
vsigma_sigma_mha  mHa      ∫ |Δv_σ|σ / ∫ρ: v_σ diverges where ρ → 0, v_σ σ/ρ is an energy
vtau              1        ∫ ρ|Δv_τ| / ∫ρ
================= ======== ===================================================================
"""

from __future__ import annotations

import torch
from torch import Tensor

from taufree.data.store import ReferenceDensity
from taufree.errors import UserError
from taufree.functional import Functional, hold
from taufree.physics.descriptors import (
    contracted_gradient,
    kinetic_energy_density,
    lda_exchange,
    reduced_gradient_squared,
    reduced_laplacian,
)
from taufree.physics.kinetic import Deorbitalizer
from taufree.physics.parents import Parent, parent_named, partial_derivatives
from taufree.quantities import GridDensity

MHA = 1000.0


def spin_scaled(density: GridDensity) -> tuple[Tensor, Tensor]:
    """ρ and σ of the spin-unpolarized densities n_spin·ρσ, (n_spin, n_points) each."""
    return density.n_spin * density.rho, contracted_gradient(density.n_spin * density.grad_rho)


def classic_alpha(deorbitalizer: Deorbitalizer, record: ReferenceDensity) -> Tensor:
    """α̃(p, q) of an analytic deorbitalizer, (n_spin, n_points).

    Raises
    ------
    UserError
        The record has no Laplacian of the density.
    """
    if record.lapl is None:
        raise UserError(f"{record.name} was stored without ∇²ρ, which analytic deorbitalizers need")
    rho, sigma, _ = hold(*spin_scaled(record.density))
    q = reduced_laplacian(rho, record.density.n_spin * record.lapl)
    return deorbitalizer(reduced_gradient_squared(rho, sigma), q)


def model_alpha(functional: Functional, density: GridDensity) -> tuple[Tensor, Tensor]:
    """α̃ (n_spin, n_points) of a model, and the gates (n_spin, n_points, n_experts)."""
    here = density.to(functional.device)
    geometry = functional.geometry(here.coords, here.centers, here.lattice)
    parts = [functional.potential(*x, here.weights, geometry) for x in here.unpolarized]
    alpha, gates = (
        torch.stack([getattr(part, key) for part in parts]) for key in ("alpha", "gates")
    )
    return alpha.to(density.rho), gates.to(density.rho)


def errors(record: ReferenceDensity, alpha: Tensor) -> dict[str, float]:
    """Errors of α̃ (n_spin, n_points) at a density; the module's docstring defines them.

    Where the density is below `taufree.functional.RHO_THRESHOLD`, a deorbitalized functional has
    neither energy nor potential, and the parent's own count as errors.
    """
    return compare(record, *parent_form(record, alpha))


def parent_form(record: ReferenceDensity, alpha: Tensor) -> tuple[Tensor, ...]:
    """e_x and ∂e_x/∂(ρ, σ, τ) of the parent at α̃, (n_spin, n_points) each."""
    rho, sigma, held = hold(*spin_scaled(record.density))
    tau = kinetic_energy_density(rho, sigma, alpha)
    values = partial_derivatives(parent_named(record.parent), rho, sigma, tau)
    return tuple(x * held for x in values)


def exchange_energy(parent: Parent, density: GridDensity, alpha: Tensor) -> float:
    """E_x = ½ Σσ ∫ e_x(2ρσ, α), or ∫ e_x(ρ, α) for a closed shell; α (n_spin, n_points)."""
    rho, sigma, held = hold(*spin_scaled(density))
    exc = held * lda_exchange(rho) * parent.enhancement(reduced_gradient_squared(rho, sigma), alpha)
    return float(density.integral(exc))


def compare(
    record: ReferenceDensity, exc: Tensor, vrho: Tensor, vsigma: Tensor, vtau: Tensor
) -> dict[str, float]:
    """Errors of e_x and its partial derivatives, (n_spin, n_points) each, whatever made them."""
    d_exc, d_rho = exc - record.exc, vrho - record.vrho
    d_sigma, d_tau = vsigma - record.vsigma, vtau - record.vtau
    rho, sigma = spin_scaled(record.density)

    def integral(values: Tensor) -> float:
        return float(record.density.integral(values))

    electrons = integral(rho)
    return {
        "de_x_mha": MHA * integral(d_exc),
        "l1_mha": MHA * integral(d_exc.abs()),
        "exc_mha": MHA * integral(d_exc.abs()) / electrons,
        "vrho_mha": MHA * integral(rho * d_rho.abs()) / electrons,
        "vsigma_sigma_mha": MHA * integral(sigma * d_sigma.abs()) / electrons,
        "vtau": integral(rho * d_tau.abs()) / electrons,
    }


def routing(record: ReferenceDensity, gates: Tensor) -> tuple[list[float], int]:
    """Electrons that go to each expert, and the largest number of experts active at a point."""
    rho, sigma = spin_scaled(record.density)
    electrons = rho * record.density.weights / record.density.n_spin
    held = hold(rho, sigma)[2]
    active = (gates > 0).sum(-1) * held
    return torch.einsum("sp,spe->e", electrons, gates).tolist(), int(active.max())
