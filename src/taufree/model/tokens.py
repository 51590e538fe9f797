"""Attention between grid points and tokens on nuclei, with a geometric feature map.

A grid point at r and the token at R_A see each other through the features

    Φ_{n,lm}(r − R_A) = C(d) exp(−a_n d²) a_n^{l/2} S_lm(r − R_A),   d = |r − R_A|,

Gaussians times real solid harmonics S_lm, smooth at the nucleus and, with C(d) = (1 − d²/d_c²)³,
exactly zero from the cutoff d_c on: leaving out farther pairs costs no accuracy at all. Both
directions of attention are this one linear map and its transpose:

    to_tokens:  c_{A,n,lm,v} = Σ_j Φ_{n,lm}(r_j − R_A) x_jv        (x carries w_j ρ_j: electrons)
    to_points:  f_ik        = Σ_A Σ_{n,lm} Φ_{n,lm}(r_i − R_A) z_{A,n,lm,k}

so each is the other's derivative, to any order. In a crystal the sum runs over image tokens too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taufree.model.config import ModelConfig

TILE = 512
"""Grid points in a tile: its features for a dozen tokens stay in the cache of one core."""
BLOCK = 32 * TILE
"""Grid points that go through the experts together."""


def gaussian_exponents(config: ModelConfig) -> Tensor:
    """Even-tempered exponents a_n = a_0 2ⁿ, broadest first, (n_radial[0],)."""
    return config.min_exponent * 2.0 ** torch.arange(config.n_radial[0], dtype=torch.float64)


def solid_harmonics(r: Tensor, l_max: int) -> Tensor:
    """Real solid harmonics S_lm of unit-normalized Y_lm (Σ_m S_lm² = |r|^{2l}), l ≤ 2.

    Shapes: (..., 3, n) -> (..., (l_max + 1)², n).
    """
    x, y, z = r.unbind(-2)
    s = [torch.ones_like(x), x, y, z]
    if l_max == 2:
        root3 = math.sqrt(3)
        s += [root3 * x * y, root3 * y * z, z * z - (x * x + y * y) / 2]
        s += [root3 * x * z, root3 / 2 * (x * x - y * y)]
    return torch.stack(s[: (l_max + 1) ** 2], -2)


def gaussian_features(r: Tensor, config: ModelConfig) -> Tensor:
    """Φ_{n,lm} for displacements r: (n_near, 3, n) -> (n_near, n_features, n)."""
    exponents = gaussian_exponents(config).to(r)
    d2 = (r * r).sum(-2, keepdim=True)
    fade = (1 - d2 / config.cutoff**2).clamp_min(0) ** 3
    gauss = fade * torch.exp(-exponents[:, None] * d2)
    harmonics = solid_harmonics(r, len(config.n_radial) - 1)
    parts = []
    for l, n in enumerate(config.n_radial):
        radial = gauss[:, :n] * exponents[:n, None] ** (l / 2)
        angular = harmonics[:, l * l : (l + 1) ** 2]
        parts.append((radial[:, :, None] * angular[:, None]).flatten(1, 2))
    return torch.cat(parts, 1)


@dataclass(frozen=True)
class Tile:
    """Neighbouring grid points, the tokens (or images of tokens) that they see, and how."""

    points: slice
    tokens: Tensor  # (n_near,)
    r: Tensor  # (n_near, 3, n_tile)
    features: Tensor | None  # (n_near, n_features, n_tile) where kept


class TokenMap:
    """The linear map Φ of one geometry; built once for an SCF.

    Parameters
    ----------
    coords : Tensor, (n_points, 3)
    centers : Tensor, (n_tokens, 3)
    lattice : Tensor, (3, 3), or None
        Cell vectors as rows; tokens are then repeated by every translation within reach.
    max_memory : float, MB
        Features are kept for as many tiles as fit in this and computed anew for the others.
    """

    def __init__(
        self,
        config: ModelConfig,
        coords: Tensor,
        centers: Tensor,
        lattice: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        max_memory: float = 0.0,
    ) -> None:
        self.config = config
        self.n_points, self.n_tokens = len(coords), len(centers)
        self.order = _spatial_order(coords)
        tokens, positions = images(centers, lattice, coords, config.cutoff)
        self.tiles: list[Tile] = []
        for start in range(0, self.n_points, TILE):
            points = coords[self.order[start : start + TILE]]
            middle = (points.amin(0) + points.amax(0)) / 2
            radius = (points - middle).norm(dim=-1).max()
            near = (positions - middle).norm(dim=-1) < radius + config.cutoff
            # displacements are differences in float64: sharp Gaussians need them
            r = (points[None] - positions[near, None]).mT.to(dtype)
            max_memory -= len(r) * config.n_features * len(points) * r.element_size() / 1e6
            kept = gaussian_features(r, config) if max_memory > 0 else None
            self.tiles.append(Tile(slice(start, start + len(points)), tokens[near], r, kept))

    def features(self, tile: Tile) -> Tensor:
        """Φ of a tile, kept or computed, (n_near, n_features, n_tile)."""
        return gaussian_features(tile.r, self.config) if tile.features is None else tile.features

    def blocks(self) -> Iterator[tuple[Tensor, list[Tile]]]:
        """Indices of the grid points in each block, and its tiles."""
        n = BLOCK // TILE
        for i in range(0, len(self.tiles), n):
            tiles = self.tiles[i : i + n]
            yield self.order[tiles[0].points.start : tiles[-1].points.stop], tiles

    def to_tokens(self, x: Tensor) -> Tensor:
        """c = Φᵀ x: (n_points, n_values) -> (n_tokens, n_features, n_values)."""
        return _ToTokens.apply(x, self)

    def to_points(self, z: Tensor) -> Tensor:
        """f = Φ z: (n_tokens, n_features, n_channels) -> (n_points, n_channels)."""
        return _ToPoints.apply(z, self)

    def gather(self, x: Tensor, tiles: list[Tile]) -> Tensor:
        """The share of some tiles in c = Φᵀ x, with x (n_block, n_values) of their points alone."""
        shape = (self.n_tokens, self.config.n_features, x.shape[1])
        c = x.new_zeros(shape, dtype=torch.float64)  # sums over all points lose nothing
        for tile, x_tile in zip(tiles, x.split(TILE), strict=True):
            phi = self.features(tile)
            seen = (phi.flatten(0, 1) @ x_tile).unflatten(0, phi.shape[:2])
            c.index_add_(0, tile.tokens, seen.double())
        return c

    def scatter(self, z: Tensor, tiles: list[Tile]) -> Tensor:
        """f = Φ z at the points of some tiles, (n_block, n_channels)."""
        parts = []
        for tile in tiles:
            phi = self.features(tile)
            parts.append(phi.flatten(0, 1).T @ z[tile.tokens].flatten(0, 1))
        return torch.cat(parts)


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, token_map: TokenMap) -> Tensor:
        ctx.token_map = token_map
        c = x.new_zeros(token_map.n_tokens, token_map.config.n_features, x.shape[1]).double()
        for points, tiles in token_map.blocks():
            c += token_map.gather(x[points], tiles)
        return c.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.token_map.to_points(grad), None


class _ToPoints(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, token_map: TokenMap) -> Tensor:
        ctx.token_map = token_map
        f = z.new_zeros(token_map.n_points, z.shape[2])
        for points, tiles in token_map.blocks():
            f[points] = token_map.scatter(z, tiles)
        return f

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.token_map.to_tokens(grad), None


def _spatial_order(coords: Tensor) -> Tensor:
    """Order along a Morton curve, so that consecutive points are neighbours in space."""
    if not len(coords):
        return torch.empty(0, dtype=torch.long, device=coords.device)
    cell = ((coords - coords.amin(0)) / 0.5).long().clamp_max(2**20 - 1)
    code = torch.zeros(len(coords), dtype=torch.long, device=coords.device)
    for bit, axis in itertools.product(range(20), range(3)):
        code |= ((cell[:, axis] >> bit) & 1) << (3 * bit + axis)
    return torch.argsort(code, stable=True)


def images(
    centers: Tensor, lattice: Tensor | None, coords: Tensor, cutoff: float
) -> tuple[Tensor, Tensor]:
    """Token index and position of every token, or image of one, that some point may see."""
    index = torch.arange(len(centers), device=centers.device)
    if lattice is None or not len(coords):
        return index, centers
    # planes of lattice points are 1/|b_i| apart (b_i: rows of the inverse, no 2π)
    inverse = torch.linalg.inv(lattice)
    reach = (cutoff * inverse.norm(dim=0)).tolist()
    fractions, home = coords @ inverse, centers @ inverse
    low = (fractions.amin(0) - home.amax(0)).tolist()
    high = (fractions.amax(0) - home.amin(0)).tolist()
    steps = [
        torch.arange(math.floor(a - c), math.ceil(b + c) + 1, dtype=lattice.dtype)
        for a, b, c in zip(low, high, reach, strict=True)
    ]
    shifts = torch.cartesian_prod(*steps).to(lattice) @ lattice
    positions = (centers[None] + shifts[:, None]).flatten(0, 1)
    return index.repeat(len(shifts)), positions
