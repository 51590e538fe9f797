"""How E_x changes when points, nuclei or the cell move and the values on the grid stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from taufree.functional import Geometry, Potential
from taufree.model.attention import bonds_between
from taufree.model.averages import shares


@dataclass(frozen=True)
class Motion:
    """Derivatives of E_x at fixed w_j, ρ_j, ∇ρ_j: what tokens on nuclei add to a force.

    ``points`` (n_points, 3) and ``centers`` (n_centers, 3) are ∂E_x/∂r_j and ∂E_x/∂R_A, and
    ``strain`` (3, 3) is ∂E_x/∂ε for r → (1 + ε) r of points, nuclei and lattice together.
    Moving everything changes nothing: Σ_j ∂E_x/∂r_j + Σ_A ∂E_x/∂R_A = 0.
    """

    points: Tensor
    centers: Tensor
    strain: Tensor


def motion(
    potential: Potential, geometry: Geometry, centers: Tensor, lattice: Tensor | None = None
) -> Motion:
    """Positions enter through Φ(r_j − R_A), averages, and the distances between tokens.

    ``potential`` and ``geometry`` belong together; ``centers`` (n_centers, 3) and ``lattice``
    (3, 3) are what the geometry was made of.
    """
    token_map, seam = geometry.token_map, potential.seam
    # scalars before tensors
    x = torch.cat([seam.values, seam.vnormalizer[:, None], seam.vread], 1)
    g = shares(token_map.config).to(seam.z.device).expand(token_map.n_tokens, -1)
    z = torch.cat([seam.vseen.double(), g[..., None], seam.z.double()], 2)
    averages = seam.vaverage, seam.q, seam.widths
    points, tokens, strain = token_map.motion(x, z, seam.y, averages)
    with torch.enable_grad():
        moved = centers.detach().requires_grad_()
        cell = torch.eye(3).to(centers).requires_grad_()
        strained = None if lattice is None else lattice @ cell.T
        bonds = bonds_between(moved @ cell.T, strained, token_map.config.cutoff)
        d_tokens, d_strain = torch.autograd.grad(bonds.squared_distance, (moved, cell), seam.vbonds)
    return Motion(points, tokens + d_tokens, strain + d_strain)
