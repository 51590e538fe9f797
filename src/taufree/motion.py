"""How E_x changes when points, nuclei or the cell move and the values on the grid stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from taufree.functional import Geometry, Potential
from taufree.model.attention import bonds_between
from taufree.model.averages import shares, widened
from taufree.model.kernels import TILE
from taufree.model.kernels import motion as kernels
from taufree.model.tokens import TokenMap, gaussian_features

PAIRS = 256
"""Pairs of tile and token that are moved at once: autograd keeps what it went through."""


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
    (n_periodic, 3) are what the geometry was made of.
    """
    token_map, seam = geometry.token_map, potential.seam
    # scalars before tensors
    x = torch.cat([seam.values, seam.vnormalizer[:, None], seam.vread], 1)
    g = shares(token_map.config).to(seam.z.device).expand(token_map.n_tokens, -1)
    z = torch.cat([seam.vseen.double(), g[..., None], seam.z.double()], 2)
    averages = seam.vaverage, seam.q, seam.widths
    points, tokens, strain = _displaced(token_map, x, z, seam.y, averages)
    with torch.enable_grad():
        moved = centers.detach().requires_grad_()
        cell = torch.eye(3).to(centers).requires_grad_()
        strained = None if lattice is None else lattice @ cell.T
        bonds = bonds_between(moved @ cell.T, strained, token_map.config.cutoff)
        d_tokens, d_strain = torch.autograd.grad(bonds.squared_distance, (moved, cell), seam.vbonds)
    return Motion(points, tokens + d_tokens, strain + d_strain)


def _displaced(
    token_map: TokenMap, x: Tensor, z: Tensor, y: Tensor, averages: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of Σ x Φ (z, y) + Σ v ρ̄ when points, tokens or the cell move.

    ``x`` (n_points, n_scalars + 8 n_directed), ``z`` and ``y`` as in `TokenMap.to_points`;
    ``averages`` are v (n_points, 4 n_heads), and q and b as in `taufree.model.averages.averaged`.

    Returns
    -------
    By r_j, (n_points, 3); by R_A, (n_tokens, 3), images with their token; and by ε for
    r → (1 + ε) r of points, tokens and lattice together, (3, 3). All in float64.
    """
    x, z, y = x.double(), z.double().contiguous(), y.double().contiguous()
    v, q, b = averages
    d_points, d_tokens = x.new_zeros(token_map.n_points, 3), x.new_zeros(token_map.n_tokens, 3)
    strain = x.new_zeros(3, 3)
    form = _displace if token_map.compiled else _displace_plainly
    for points, tiles in token_map.blocks():
        at_points = (x[points], 0.0), (b[points], 1.0), (v[points], 0.0)
        x_tiles, b_tiles, v_tiles = (token_map.tiled(a, tiles, fill) for a, fill in at_points)
        force, *moved = form(token_map, tiles, x_tiles, z, y, b_tiles, q, v_tiles)
        d_points[points] = force.mT.flatten(0, 1)[: len(points)]
        d_tokens += moved[0]
        strain += moved[1]
    return d_points, d_tokens, strain


def _displace(token_map: TokenMap, tiles: slice, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Derivatives by the points of some tiles, (n_tiles, 3, TILE), by tokens and by strain."""
    arguments = token_map.arguments(tiles, torch.float64)[:6]
    arrays = (x.contiguous().numpy() for x in inputs)
    found = kernels.displace(*arguments, token_map.config.cutoff, *arrays)  # type: ignore[call-arg]
    return tuple(map(torch.from_numpy, found))


def _displace_plainly(
    token_map: TokenMap, tiles: slice, x: Tensor, z: Tensor, y: Tensor, b: Tensor, q: Tensor,
    v: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The reference form of `_displace`."""
    x = torch.cat([x, v], 1)
    force, d_tokens = x.new_zeros(len(x), 3, TILE), x.new_zeros(token_map.n_tokens, 3)
    strain = x.new_zeros(3, 3)
    for pairs in token_map.pairs(tiles, PAIRS):
        tile, token = token_map.tile[pairs] - tiles.start, token_map.token[pairs]
        r = token_map.displacements(pairs)
        with torch.enable_grad():
            phi = gaussian_features(r.requires_grad_(), token_map.config)
            near = widened(r, q[token], b[tile], token_map.config)
            read = torch.cat([token_map.read(phi, z[token], y[token]), near], 1)
        (d_r,) = torch.autograd.grad(read, r, x[tile])
        force.index_add_(0, tile, d_r)
        d_tokens.index_add_(0, token, -d_r.sum(2))
        strain += torch.einsum("pai,pbi->ab", d_r, r.detach())
    return force, d_tokens, strain
