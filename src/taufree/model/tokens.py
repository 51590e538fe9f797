"""Attention between grid points and tokens on nuclei, with a geometric feature map.

A grid point at r and the token at R_A see each other through the features

    Φ_{n,lm}(r − R_A) = C(d) exp(−a_n d²) a_n^{l/2} S_lm(r − R_A),   d = |r − R_A|,

Gaussians times real solid harmonics S_lm, smooth at the nucleus and, with C(d) = (1 − d²/d_c²)³,
exactly zero from the cutoff d_c on: leaving out farther pairs costs no accuracy at all. Both
directions of attention are this one linear map and its transpose:

    to_tokens:  c_{A,n,lm,v} = Σ_j Φ_{n,lm}(r_j − R_A) x_jv        (x carries w_j ρ_j: electrons)
    to_points:  f_ik        = Σ_A Σ_{n,lm} Φ_{n,lm}(r_i − R_A) z_{A,n,lm,k}

so each is the other's derivative, to any order. In a crystal the sum runs over image tokens too.
Neighbouring grid points form tiles, and a list of pairs says which tokens each tile sees. On a CPU
compiled kernels do the sums; the PyTorch form here is the reference, and runs anywhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor, nn

from taufree.model import kernels
from taufree.model.config import ModelConfig
from taufree.model.kernels import NEGLIGIBLE, TILE

BLOCK = 256
"""Tiles whose points go through the experts together."""
SUBNORMAL = 1e-15
"""Values below this gather as zero: times a Gaussian they would be subnormal, and slow."""
PAIRS = 4096
"""Pairs of tile and token whose features the PyTorch form makes at once."""


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
    gauss = torch.where(gauss > NEGLIGIBLE, gauss, 0)
    harmonics = solid_harmonics(r, len(config.n_radial) - 1)
    parts = []
    for l, n in enumerate(config.n_radial):
        radial = gauss[:, :n] * exponents[:n, None] ** (l / 2)
        angular = harmonics[:, l * l : (l + 1) ** 2]
        parts.append((radial[:, :, None] * angular[:, None]).flatten(1, 2))
    return torch.cat(parts, 1)


class TokenMap:
    """The linear map Φ of one geometry; built once for an SCF.

    Parameters
    ----------
    coords : Tensor, (n_points, 3)
    centers : Tensor, (n_tokens, 3)
    lattice : Tensor, (3, 3), or None
        Cell vectors as rows; tokens are then repeated by every translation within reach.

    Features have the precision of what they are applied to; displacements are float64 in any case,
    for sharp Gaussians need them.
    """

    def __init__(
        self,
        config: ModelConfig,
        coords: Tensor,
        centers: Tensor,
        lattice: Tensor | None = None,
    ) -> None:
        self.config = config
        self.n_points, self.n_tokens = len(coords), len(centers)
        self.order = _spatial_order(coords)
        self.n_tiles = -(-self.n_points // TILE)
        padded = coords[self.order]
        padded = torch.cat([padded, padded[-1:].expand(self.n_tiles * TILE - self.n_points, 3)])
        self.points = padded.unflatten(
            0, (self.n_tiles, TILE)
        ).mT.contiguous()  # (n_tiles, 3, TILE)
        tokens, positions = images(centers, lattice, coords, config.cutoff)
        tile, image = self._pairs(positions)
        self.tile, self.token, self.position = tile, tokens[image], positions[image]
        counts = torch.bincount(tile, minlength=self.n_tiles)
        self.pointer = torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    def _pairs(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles and tokens (or images) within the cutoff of each other, sorted by tile."""
        low, high = self.points.amin(2), self.points.amax(2)
        middle = (low + high) / 2
        radius = (
            (self.points - middle[..., None]).norm(dim=1).amax(1) if self.n_tiles else low[:, 0]
        )
        tiles, found = [], []
        for start in range(0, self.n_tiles, 1024):
            part = slice(start, start + 1024)
            near = torch.cdist(middle[part], positions) < radius[part, None] + self.config.cutoff
            tile, image = near.nonzero().unbind(1)
            tiles.append(tile + start)
            found.append(image)
        none = torch.zeros(0, dtype=torch.long, device=positions.device)
        return torch.cat([none, *tiles]), torch.cat([none, *found])

    def blocks(self) -> Iterator[tuple[Tensor, slice]]:
        """Indices of the grid points in each block of tiles, and its tiles."""
        for start in range(0, self.n_tiles, BLOCK):
            tiles = slice(start, min(start + BLOCK, self.n_tiles))
            yield self.order[start * TILE : tiles.stop * TILE], tiles

    def to_tokens(self, x: Tensor) -> Tensor:
        """c = Φᵀ x: (n_points, n_values) -> (n_tokens, n_features, n_values)."""
        return _ToTokens.apply(x, self)

    def to_points(self, z: Tensor) -> Tensor:
        """f = Φ z: (n_tokens, n_features, n_channels) -> (n_points, n_channels)."""
        return _ToPoints.apply(z, self)

    def gather(self, x: Tensor, tiles: slice) -> Tensor:
        """Share of some tiles in c = Φᵀ x, in float64; x (n_block, n_values) of their points."""
        x = nn.functional.hardshrink(x, SUBNORMAL)
        x = torch.cat([x, x.new_zeros((tiles.stop - tiles.start) * TILE - len(x), x.shape[1])])
        x = x.unflatten(0, (-1, TILE)).mT.contiguous()  # (n_tiles, n_values, TILE)
        if self._compiled:
            c = kernels.gather(*self._arguments(tiles, x.dtype), x.numpy(), self.n_tokens)  # type: ignore[call-arg]
            return torch.from_numpy(c)
        c = x.new_zeros(self.n_tokens, self.config.n_features, x.shape[1], dtype=torch.float64)
        for tile, token, phi in self._features(tiles, x.dtype):
            c.index_add_(0, token, (phi @ x[tile].mT).double())
        return c

    def scatter(self, z: Tensor, tiles: slice) -> Tensor:
        """f = Φ z at the points of some tiles, (n_block, n_channels)."""
        n_tiles = tiles.stop - tiles.start
        if self._compiled:
            z = z.contiguous()
            f = kernels.scatter(*self._arguments(tiles, z.dtype), z.numpy())  # type: ignore[call-arg]
            f = torch.from_numpy(f)
        else:
            f = z.new_zeros(n_tiles, z.shape[2], TILE)
            for tile, token, phi in self._features(tiles, z.dtype):
                f.index_add_(0, tile, z[token].mT @ phi)
        return f.mT.flatten(0, 1)[: self.n_points - tiles.start * TILE]

    @property
    def _compiled(self) -> bool:
        return self.points.device.type == "cpu"

    def _features(
        self, tiles: slice, dtype: torch.dtype
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Tiles (counted from the first), tokens and Φ (n, n_features, TILE) of some pairs."""
        first, last = self.pointer[tiles.start].item(), self.pointer[tiles.stop].item()
        for start in range(int(first), int(last), PAIRS):
            pairs = slice(start, min(start + PAIRS, int(last)))
            r = self.points[self.tile[pairs]] - self.position[pairs, :, None]
            phi = gaussian_features(r.to(dtype), self.config)
            yield self.tile[pairs] - tiles.start, self.token[pairs], phi

    def _arguments(self, tiles: slice, dtype: torch.dtype) -> tuple[Any, ...]:
        """What both kernels are told of some tiles; they run in as many threads as PyTorch."""
        most = int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        numba.set_num_threads(min(torch.get_num_threads(), most))
        config = self.config
        pointer = self.pointer[tiles.start : tiles.stop + 1]
        pairs = slice(int(pointer[0]), int(pointer[-1]))
        n_radial = config.n_radial + (0,) * (3 - len(config.n_radial))
        ladder = gaussian_exponents(config).numpy()
        scale = np.array([ladder ** (l / 2) for l in range(3)], str(dtype).removeprefix("torch."))
        return (
            self.points[tiles].numpy(),
            (pointer - pointer[0]).numpy(),
            self.token[pairs].numpy(),
            self.position[pairs].numpy(),
            config.min_exponent,
            n_radial,
            scale,
            config.cutoff,
        )


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, token_map: TokenMap) -> Tensor:
        ctx.token_map = token_map
        c = x.new_zeros(token_map.n_tokens, token_map.config.n_features, x.shape[1]).double()
        for points, tiles in token_map.blocks():
            c += token_map.gather(x.detach()[points], tiles)
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
            f[points] = token_map.scatter(z.detach(), tiles)
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
