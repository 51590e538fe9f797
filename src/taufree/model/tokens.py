"""Attention between grid points and tokens on nuclei, with a geometric feature map.

A grid point at r and the token at R_A see each other through the features

    Φ_{n,lm}(r − R_A) = C(d) exp(−a_n d²) a_n^{l/2} S_lm(r − R_A),   d = |r − R_A|,

Gaussians times real solid harmonics S_lm, smooth at the nucleus and, with C(d) = (1 − d²/d_c²)³,
exactly zero from the cutoff d_c on: leaving out farther pairs costs no accuracy at all. Both
directions of attention are this one linear map and its transpose:

    to_tokens:  c_{A,n,lm,v} = Σ_j Φ_{n,lm}(r_j − R_A) x_jv        (x carries w_j ρ_j: electrons)
    to_points:  f_ik        = Σ_A Σ_{n,lm} Φ_{n,lm}(r_i − R_A) z_{A,n,lm,k}
                f_i,lm,k    = Σ_A Σ_n      Φ_{n,lm}(r_i − R_A) y_{A,ln,k}      (l = 1, 2)

so each is the other's derivative, to any order. The first kind of f are scalars; the second are
tensors, which a grid point contracts with the direction of its own ∇ρ. In a crystal the sum runs
over image tokens too.
Neighbouring grid points form tiles, and a list of pairs says which tokens each tile sees. On a CPU
compiled kernels do the sums; the PyTorch form here is the reference, and runs anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor, nn

from taufree.model.config import ModelConfig
from taufree.model.kernels import TILE
from taufree.model.kernels import tokens as kernels
from taufree.model.kernels.tokens import NEGLIGIBLE

SPREAD = (
    (32, 0x1F00000000FFFF),
    (16, 0x1F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)
"""Shifts and masks that set the bits of an integer three apart."""
BLOCK = 256
"""Tiles whose points go through the experts together: what a CPU's cache holds."""
GPU_BLOCK = 4096
"""The same on other devices, which are kept busy by much at once."""
SUBNORMAL = 1e-15
"""Values below this gather as zero: times a Gaussian they would be subnormal, and slow."""
PAIRS = 16_384
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


def higher_features(phi: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Those of l = 1 and 2 by (n, m): (n_near, n_features, n) -> (n_near, n_radial, 2l + 1, n)."""
    n0, n1, n2 = config.n_radial
    first, second = phi[:, n0:].split((3 * n1, 5 * n2), 1)
    return first.unflatten(1, (n1, 3)), second.unflatten(1, (n2, 5))


def set_threads() -> None:
    """Let the compiled kernels run in as many threads as PyTorch."""
    most = int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(min(torch.get_num_threads(), most))


def split_by_l(f: Tensor, n_directed: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scalars, vectors (3, n_directed) and l = 2 tensors (5, n_directed) along an axis of f."""
    n_scalars = f.shape[dim] - 8 * n_directed
    scalars, first, second = f.split((n_scalars, 3 * n_directed, 5 * n_directed), dim)
    return scalars, first.unflatten(dim, (3, n_directed)), second.unflatten(dim, (5, n_directed))


class TokenMap:
    """The linear map Φ of one geometry; built once for an SCF.

    Parameters
    ----------
    coords : Tensor, (n_points, 3)
    n_tokens : int
    tokens, positions : Tensor, (n_images,) and (n_images, 3)
        Where tokens are; in a crystal one token is at many places (see `images`).

    Features have the precision of what they are applied to; displacements are float64 in any case,
    for sharp Gaussians need them.
    """

    def __init__(
        self,
        config: ModelConfig,
        coords: Tensor,
        n_tokens: int,
        tokens: Tensor,
        positions: Tensor,
    ) -> None:
        self.config = config
        self.n_points, self.n_tokens = len(coords), n_tokens
        self.order = _spatial_order(coords)
        self.n_tiles = -(-self.n_points // TILE)
        padded = coords[self.order]
        padded = torch.cat([padded, padded[-1:].expand(self.n_tiles * TILE - self.n_points, 3)])
        self.points = padded.unflatten(
            0, (self.n_tiles, TILE)
        ).mT.contiguous()  # (n_tiles, 3, TILE)
        tile, image = self._neighbours(positions)
        self.tile, self.token, self.position = tile, tokens[image], positions[image]
        counts = torch.bincount(tile, minlength=self.n_tiles)
        self.pointer = torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    def _neighbours(self, positions: Tensor) -> tuple[Tensor, Tensor]:
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
        size = BLOCK if self.compiled else GPU_BLOCK
        for start in range(0, self.n_tiles, size):
            tiles = slice(start, min(start + size, self.n_tiles))
            yield self.order[start * TILE : tiles.stop * TILE], tiles

    def to_tokens(self, x: Tensor) -> Tensor:
        """c = Φᵀ x: (n_points, n_values) -> (n_tokens, n_features, n_values)."""
        return _ToTokens.apply(x, 0, self)[0]

    def to_points(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """f = Φ (z, y) at every point.

        Shapes: (n_tokens, n_features, n_scalars), (n_tokens, n_tensor_features, n_directed) ->
        (n_points, n_scalars + 8 n_directed): scalars, l = 1 by (m, channel), l = 2 by (m, channel).
        """
        return _ToPoints.apply(z, self.no_tensors(z) if y is None else y, self)

    def gather(self, x: Tensor, n_directed: int, tiles: slice) -> tuple[Tensor, Tensor]:
        """Share of some tiles in Φᵀ x, in float64, shaped as z and y of `to_points`.

        ``x`` (n_block, n_scalars + 8 n_directed) of the tiles' points.
        """
        x = nn.functional.hardshrink(x, SUBNORMAL)
        x = self.tiled(x, tiles)
        if self.compiled:
            arguments = *self.arguments(tiles, x.dtype), x.numpy(), n_directed, self.n_tokens
            scalars, tensors = kernels.gather(*arguments)
            return torch.from_numpy(scalars), torch.from_numpy(tensors)
        c, d = self.zeros(x.shape[1] - 8 * n_directed, n_directed, x)
        for tile, token, phi in self._features(tiles, x.dtype):
            scalars, *tensors = split_by_l(x[tile], n_directed, 1)
            c.index_add_(0, token, (phi @ scalars.mT).double())
            pairs = zip(higher_features(phi, self.config), tensors, strict=True)
            inner = [torch.einsum("pnmi,pmki->pnk", a, b) for a, b in pairs]
            d.index_add_(0, token, torch.cat(inner, 1).double())
        return c, d

    def scatter(self, z: Tensor, y: Tensor, tiles: slice) -> Tensor:
        """f = Φ (z, y) at the points of some tiles, (n_block, n_scalars + 8 n_directed)."""
        n_tiles, n_scalars = tiles.stop - tiles.start, z.shape[2]
        if self.compiled:
            answers = z.contiguous().numpy(), y.contiguous().numpy()
            f = torch.from_numpy(kernels.scatter(*self.arguments(tiles, z.dtype), *answers))  # type: ignore[call-arg]
        else:
            f = z.new_zeros(n_tiles, n_scalars + 8 * y.shape[2], TILE)
            for tile, token, phi in self._features(tiles, z.dtype):
                f.index_add_(0, tile, self.read(phi, z[token], y[token]))
        return f.mT.flatten(0, 1)[: self.n_points - tiles.start * TILE]

    def tiled(self, x: Tensor, tiles: slice, fill: float = 0.0) -> Tensor:
        """Values of a block's points by tiles, padded with ``fill``: (n_tiles, n_values, TILE)."""
        missing = (tiles.stop - tiles.start) * TILE - len(x)
        x = torch.cat([x, x.new_full((missing, x.shape[1]), fill)])
        return x.unflatten(0, (-1, TILE)).mT.contiguous()

    def read(self, phi: Tensor, z: Tensor, y: Tensor) -> Tensor:
        """What points read of one token, (n_pairs, n_scalars + 8 n_directed, TILE)."""
        pairs = zip(
            higher_features(phi, self.config), y.split(self.config.n_radial[1:], 1), strict=True
        )
        tensors = [torch.einsum("pnmi,pnk->pmki", a, b).flatten(1, 2) for a, b in pairs]
        return torch.cat([z.mT @ phi, *tensors], 1)

    def no_tensors(self, like: Tensor) -> Tensor:
        """The y that asks for scalars only."""
        return like.new_zeros(self.n_tokens, self.config.n_tensor_features, 0)

    def zeros(self, n_scalars: int, n_directed: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of `gather` to start from."""
        config = self.config
        scalars = self.n_tokens, config.n_features, n_scalars
        tensors = self.n_tokens, config.n_tensor_features, n_directed
        return like.new_zeros(scalars).double(), like.new_zeros(tensors).double()

    @property
    def compiled(self) -> bool:
        return self.points.device.type == "cpu"

    def pairs(self, tiles: slice, size: int) -> list[slice]:
        """All pairs of some tiles, so many at once."""
        first, last = (int(self.pointer[t]) for t in (tiles.start, tiles.stop))
        return [slice(start, min(start + size, last)) for start in range(first, last, size)]

    def displacements(self, pairs: slice) -> Tensor:
        """From tokens to points, (n_pairs, 3, TILE)."""
        return self.points[self.tile[pairs]] - self.position[pairs, :, None]

    def _features(
        self, tiles: slice, dtype: torch.dtype
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Tiles (counted from the first), tokens and Φ (n, n_features, TILE) of some pairs."""
        for pairs in self.pairs(tiles, PAIRS):
            phi = gaussian_features(self.displacements(pairs).to(dtype), self.config)
            yield self.tile[pairs] - tiles.start, self.token[pairs], phi

    def arguments(self, tiles: slice, dtype: torch.dtype) -> tuple[Any, ...]:
        """What both kernels are told of some tiles."""
        set_threads()
        config = self.config
        pointer = self.pointer[tiles.start : tiles.stop + 1]
        pairs = slice(int(pointer[0]), int(pointer[-1]))
        ladder = gaussian_exponents(config).numpy()
        scale = np.array([ladder ** (l / 2) for l in range(3)], str(dtype).removeprefix("torch."))
        return (
            self.points[tiles].numpy(),
            (pointer - pointer[0]).numpy(),
            self.token[pairs].numpy(),
            self.position[pairs].numpy(),
            config.min_exponent,
            config.n_radial,
            scale,
            config.cutoff,
        )


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, n_directed: int, token_map: TokenMap) -> tuple[Tensor, Tensor]:
        ctx.token_map = token_map
        c, d = token_map.zeros(x.shape[1] - 8 * n_directed, n_directed, x)
        for points, tiles in token_map.blocks():
            scalars, tensors = token_map.gather(x.detach()[points], n_directed, tiles)
            c += scalars
            d += tensors
        return c.to(x.dtype), d.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.token_map.to_points(*grads), None, None


class _ToPoints(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, y: Tensor, token_map: TokenMap) -> Tensor:
        ctx.token_map, ctx.n_directed = token_map, y.shape[2]
        f = z.new_zeros(token_map.n_points, z.shape[2] + 8 * y.shape[2])
        for points, tiles in token_map.blocks():
            f[points] = token_map.scatter(z.detach(), y.detach(), tiles)
        return f

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return *_ToTokens.apply(grad, ctx.n_directed, ctx.token_map), None


def _spatial_order(coords: Tensor) -> Tensor:
    """Order along a Morton curve, so that consecutive points are neighbours in space."""
    if not len(coords):
        return torch.empty(0, dtype=torch.long, device=coords.device)
    cell = ((coords - coords.amin(0)) / 0.5).long().clamp_max(2**20 - 1)
    for shift, mask in SPREAD:  # two zeros between any two bits
        cell = (cell | (cell << shift)) & mask
    code = cell[:, 0] | (cell[:, 1] << 1) | (cell[:, 2] << 2)
    return torch.argsort(code, stable=True)


def images(
    centers: Tensor, lattice: Tensor | None, coords: Tensor, cutoff: float
) -> tuple[Tensor, Tensor]:
    """Token index and position of every token, or image of one, that some point may see.

    Shapes: (n_tokens, 3), (n_periodic, 3) or None, (n_points, 3) -> (n_images,), (n_images, 3).
    """
    index = torch.arange(centers.shape[0], device=centers.device)
    if lattice is None or not len(coords):
        return index, centers
    # planes of lattice points are 1/|b_i| apart (b_i: columns of the inverse, no 2π); of a slab
    # or a wire, which has fewer vectors, the pseudo-inverse holds those in its plane
    inverse = torch.linalg.pinv(lattice)
    reach = (cutoff * inverse.norm(dim=0)).tolist()
    fractions, home = coords @ inverse, centers @ inverse
    low = (fractions.amin(0) - home.amax(0)).tolist()
    high = (fractions.amax(0) - home.amin(0)).tolist()
    steps = [
        torch.arange(math.floor(a - c), math.ceil(b + c) + 1, dtype=lattice.dtype)
        for a, b, c in zip(low, high, reach, strict=True)
    ]
    shifts = torch.cartesian_prod(*steps).reshape(-1, len(lattice)).to(lattice) @ lattice
    positions = (centers[None] + shifts[:, None]).flatten(0, 1)
    return index.repeat(len(shifts)), positions
