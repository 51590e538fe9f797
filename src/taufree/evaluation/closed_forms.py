"""Densities in closed form, with the α of their orbitals: where the answer is known exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from pyscf import dft, gto
from torch import Tensor

from taufree.physics.descriptors import K_F, iso_orbital_indicator
from taufree.quantities import GridDensity

WAVELENGTHS = 4
"""Thickness of a slab's background in Fermi wavelengths 2π/k_F."""
SLAB_POINTS = 800
"""Gauss-Legendre points across a slab; twice as many change E_x by less than 1e-6 of it."""
ONE_ELECTRON_LEVEL = 3
"""PySCF's grid level for one electron."""


@dataclass(frozen=True)
class ExactDensity:
    """A density with its ∇²ρ and the α of its orbitals, (n_spin, n_points) each."""

    density: GridDensity
    lapl: Tensor
    alpha: Tensor


def jellium_slab(
    r_s: float, wavelengths: float = WAVELENGTHS, n_points: int = SLAB_POINTS
) -> ExactDensity:
    """Jellium between infinite barriers, per area: orbitals √(2/L) sin(k_n z) e^{ik·r}, k_n = nπ/L.

    With η_n = (2E_F − k_n²)/2π electrons per area in subband n,

    ρ = (2/L) Σ_n η_n sin²(k_n z),  τ = (2/L) Σ_n η_n [(π/2) η_n sin²(k_n z) + (k_n²/2) cos²(k_n z)]

    The barriers stand 3π/(8k_F) outside a background of density 3/(4πr_s³): a thick slab of the
    bulk's Fermi level is neutral there. Slabs of all r_s are one density, uniformly scaled.

    Parameters
    ----------
    r_s : float
        Wigner-Seitz radius of the background, bohr.
    wavelengths : float
        Thickness of the background in 2π/k_F.
    n_points : int
        Points along z; their weights are lengths, integrals are per area.
    """
    k_f = K_F * (3 / (4 * math.pi)) ** (1 / 3) / r_s
    thickness = wavelengths * 2 * math.pi / k_f
    length = thickness + 2 * 3 * math.pi / (8 * k_f)
    electrons = thickness * 3 / (4 * math.pi * r_s**3)  # per area
    n = torch.arange(1, 2 + math.ceil(2 * k_f * length / math.pi), dtype=torch.float64)
    k = n * math.pi / length
    level = (2 * math.pi * electrons + (k**2).cumsum(0)) / n  # 2E_F, if n subbands are occupied
    occupied = level > k**2
    k = k[occupied]
    eta = (level[occupied][-1] - k**2) / (2 * math.pi)

    x, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(n_points))
    z = (1 + x) * length / 2
    sin2, cos2 = torch.sin(z[:, None] * k) ** 2, torch.cos(z[:, None] * k) ** 2
    rho = 2 / length * sin2 @ eta
    slope = 2 / length * torch.sin(2 * z[:, None] * k) @ (eta * k)
    lapl = 4 / length * (cos2 - sin2) @ (eta * k**2)
    tau = 2 / length * (sin2 @ (math.pi / 2 * eta**2) + cos2 @ (eta * k**2 / 2))
    zero = torch.zeros_like(z)
    density = GridDensity(
        coords=torch.stack([zero, zero, z], -1),
        weights=w * length / 2,
        rho=rho[None],
        grad_rho=torch.stack([zero, zero, slope], -1)[None],
        centers=z.new_zeros(0, 3),
    )
    return ExactDensity(density, lapl[None], iso_orbital_indicator(rho, slope**2, tau)[None])


def one_electron(centers: Tensor, charge: float = 1.0) -> ExactDensity:
    """One electron in ψ ∝ Σ_A e^{−Z|r − R_A|}: an atom, or the simplest bond; α = 0.

    Parameters
    ----------
    centers : Tensor, (n_centers, 3), bohr
    charge : float
        Z; the grid is that of hydrogen, scaled.
    """
    nuclei = [("H", position) for position in (charge * centers).tolist()]
    grids = dft.gen_grid.Grids(gto.M(atom=nuclei, unit="Bohr", spin=None, verbose=0))
    grids.level = ONE_ELECTRON_LEVEL
    grids.build()
    coords = torch.from_numpy(grids.coords) / charge
    weights = torch.from_numpy(grids.weights) / charge**3

    t = charge * torch.cdist(centers, centers)
    overlap = torch.exp(-t) * (1 + t + t**2 / 3)  # of normalized 1s orbitals
    norm = math.pi / charge**3 * float(overlap.sum())
    r = coords[:, None] - centers  # (n_points, n_centers, 3)
    d = r.norm(dim=-1)
    phi = torch.exp(-charge * d) / math.sqrt(norm)
    psi = phi.sum(1)
    grad_psi = -charge * ((phi / d)[..., None] * r).sum(1)
    lapl_psi = ((charge**2 - 2 * charge / d) * phi).sum(1)
    up = psi**2, 2 * psi[:, None] * grad_psi, 2 * (grad_psi.square().sum(1) + psi * lapl_psi)
    rho, grad_rho, lapl = (torch.stack([f, torch.zeros_like(f)]) for f in up)
    density = GridDensity(coords, weights, rho, grad_rho, centers)
    return ExactDensity(density, lapl, torch.zeros_like(rho))
