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
from torch.utils.checkpoint import checkpoint

from taufree.model import kernels
from taufree.model.config import ModelConfig
from taufree.model.kernels import NEGLIGIBLE, TILE

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
AVERAGED_PAIRS = 2048
"""The same for averages, whose features differ from head to head; autograd makes them anew."""
MOVING_PAIRS = 256
"""The same where autograd keeps what it went through."""

_HALF_ROOT3 = math.sqrt(3) / 2
_TENSORS = [
    [[0, _HALF_ROOT3, 0], [_HALF_ROOT3, 0, 0], [0, 0, 0]],
    [[0, 0, 0], [0, 0, _HALF_ROOT3], [0, _HALF_ROOT3, 0]],
    [[-0.5, 0, 0], [0, -0.5, 0], [0, 0, 1]],
    [[0, 0, _HALF_ROOT3], [0, 0, 0], [_HALF_ROOT3, 0, 0]],
    [[_HALF_ROOT3, 0, 0], [0, -_HALF_ROOT3, 0], [0, 0, 0]],
]
"""T_m of S_2m(r) = rᵀ T_m r."""


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


def averaged_gaussians(r: Tensor, q: Tensor, b: Tensor, config: ModelConfig) -> Tensor:
    """What one token adds to `TokenMap.average` at displacements r.

    Shapes: (n_near, 3, n), (n_near, n_features), (n_near, n_heads, n) -> (n_near, 4 n_heads, n).
    """
    n0, n1, n2 = config.n_radial
    exponents = gaussian_exponents(config).to(r)[:, None]
    d2 = (r * r).sum(1)[:, None, None]
    fade = (1 - d2 / config.cutoff**2).clamp_min(0) ** 3
    w = b[:, :, None] / (exponents + b[:, :, None])  # (n_near, n_heads, n0, n)
    gauss = fade * torch.exp(-exponents * w * d2) * w**1.5
    s, v, t = q.split((n0, 3 * n1, 5 * n2), 1)
    v = v.unflatten(1, (n1, 3)) * exponents[:n1].sqrt()  # (n_near, n1, 3)
    t = t.unflatten(1, (n2, 5)) * exponents[:n2] @ r.new_tensor(_TENSORS).flatten(1)
    turned = t.unflatten(2, (3, 3)) @ r[:, None]  # (n_near, n2, 3, n)
    slope = 2 * turned[:, None] * w[:, :, :n2, None] ** 2  # (n_near, n_heads, n2, 3, n)
    second = (turned * r[:, None]).sum(2)[:, None] * w[:, :, :n2] ** 2
    first = (v @ r)[:, None] * w[:, :, :n1]
    pad = nn.functional.pad
    value = s[:, None, :, None] + pad(first, (0, 0, 0, n0 - n1)) + pad(second, (0, 0, 0, n0 - n2))
    straight = pad(v[:, None, :, :, None] * w[:, :, :n1, None], (0, 0, 0, 0, 0, n0 - n1))
    slope = straight + pad(slope, (0, 0, 0, 0, 0, n0 - n2))
    slope = slope - 2 * (exponents * w * value)[:, :, :, None] * r[:, None, None]
    mean = (gauss * value).sum(2)[:, :, None]
    return torch.cat([mean, (gauss[:, :, :, None] * slope).sum(2)], 2).flatten(1, 2)


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
        size = BLOCK if self._compiled else GPU_BLOCK
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

    def average(self, q: Tensor, b: Tensor) -> Tensor:
        """A density in Gaussians, averaged at every point with kernels of its own widths.

        Parameters
        ----------
        q : Tensor, (n_tokens, n_features), float64
            Coefficients of exp(−a_n d²) a_n^{l/2} S_lm; each token's density fades with C(d).
        b : Tensor, (n_points, n_heads), float64
            Exponents of the kernels.

        Returns
        -------
        (n_points, 4 n_heads): ρ̄ and ∇ρ̄ of each head (of C(d) only the value, not its slope, is in
        ∇ρ̄). See `taufree.model.averages`.
        """
        parts = [self.average_block(q, b[points], tiles) for points, tiles in self.blocks()]
        return torch.cat([b.new_zeros(0, 4 * b.shape[1]), *parts])[torch.argsort(self.order)]

    def average_block(self, q: Tensor, b: Tensor, tiles: slice) -> Tensor:
        """The same at the points of some tiles, whose b are given."""
        if self._compiled:
            return _Average.apply(q, b, self, tiles)
        return self.average_plainly(q, b, tiles)

    def average_plainly(self, q: Tensor, b: Tensor, tiles: slice) -> Tensor:
        """The reference form of `average_block`."""
        b_tiles = self._tiled(b, tiles, 1.0)  # (n_tiles, n_heads, TILE)
        found = b.new_zeros(len(b_tiles), 4 * b.shape[1], TILE)
        first, last = (int(self.pointer[t]) for t in (tiles.start, tiles.stop))
        for start in range(first, max(last, first + 1), AVERAGED_PAIRS):  # none at all: once
            pairs = slice(start, min(start + AVERAGED_PAIRS, last))
            tile = self.tile[pairs] - tiles.start
            r = self.points[self.tile[pairs]] - self.position[pairs, :, None]
            inputs = r, q[self.token[pairs]], b_tiles[tile], self.config
            near = checkpoint(averaged_gaussians, *inputs, use_reentrant=False)
            found = found.index_add(0, tile, near)
        return found.mT.flatten(0, 1)[: len(b)]

    def gather(self, x: Tensor, n_directed: int, tiles: slice) -> tuple[Tensor, Tensor]:
        """Share of some tiles in Φᵀ x, in float64, shaped as z and y of `to_points`.

        ``x`` (n_block, n_scalars + 8 n_directed) of the tiles' points.
        """
        x = nn.functional.hardshrink(x, SUBNORMAL)
        x = self._tiled(x, tiles)
        if self._compiled:
            arguments = *self._arguments(tiles, x.dtype), x.numpy(), n_directed, self.n_tokens
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
        if self._compiled:
            answers = z.contiguous().numpy(), y.contiguous().numpy()
            f = torch.from_numpy(kernels.scatter(*self._arguments(tiles, z.dtype), *answers))  # type: ignore[call-arg]
        else:
            f = z.new_zeros(n_tiles, n_scalars + 8 * y.shape[2], TILE)
            for tile, token, phi in self._features(tiles, z.dtype):
                f.index_add_(0, tile, self._read(phi, z[token], y[token]))
        return f.mT.flatten(0, 1)[: self.n_points - tiles.start * TILE]

    def motion(
        self, x: Tensor, z: Tensor, y: Tensor, averages: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives of Σ x Φ (z, y) + Σ v ρ̄ when points, tokens or the cell move.

        ``x`` (n_points, n_scalars + 8 n_directed), ``z`` and ``y`` as in `to_points`; ``averages``
        are v (n_points, 4 n_heads), and q and b as in `average`.

        Returns
        -------
        By r_j, (n_points, 3); by R_A, (n_tokens, 3), images with their token; and by ε for
        r → (1 + ε) r of points, tokens and lattice together, (3, 3). All in float64.
        """
        x, z, y = x.double(), z.double(), y.double()
        v, q, b = averages
        d_points, d_tokens = x.new_zeros(self.n_points, 3), x.new_zeros(self.n_tokens, 3)
        strain = x.new_zeros(3, 3)
        for points, tiles in self.blocks():
            x_tiles = self._tiled(torch.cat([x[points], v[points]], 1), tiles)
            b_tiles = self._tiled(b[points], tiles, 1.0)
            force = x_tiles.new_zeros(len(x_tiles), 3, TILE)
            first, last = (int(self.pointer[t]) for t in (tiles.start, tiles.stop))
            for start in range(first, last, MOVING_PAIRS):
                pairs = slice(start, min(start + MOVING_PAIRS, last))
                tile, token = self.tile[pairs] - tiles.start, self.token[pairs]
                r = self.points[self.tile[pairs]] - self.position[pairs, :, None]
                with torch.enable_grad():
                    phi = gaussian_features(r.requires_grad_(), self.config)
                    near = averaged_gaussians(r, q[token], b_tiles[tile], self.config)
                    read = torch.cat([self._read(phi, z[token], y[token]), near], 1)
                (d_r,) = torch.autograd.grad(read, r, x_tiles[tile])
                force.index_add_(0, tile, d_r)
                d_tokens.index_add_(0, token, -d_r.sum(2))
                strain += torch.einsum("pai,pbi->ab", d_r, r.detach())
            d_points[points] = force.mT.flatten(0, 1)[: len(points)]
        return d_points, d_tokens, strain

    def _tiled(self, x: Tensor, tiles: slice, fill: float = 0.0) -> Tensor:
        """Values of a block's points by tiles, padded with ``fill``: (n_tiles, n_values, TILE)."""
        missing = (tiles.stop - tiles.start) * TILE - len(x)
        x = torch.cat([x, x.new_full((missing, x.shape[1]), fill)])
        return x.unflatten(0, (-1, TILE)).mT.contiguous()

    def _read(self, phi: Tensor, z: Tensor, y: Tensor) -> Tensor:
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

    def _of_average(self, q: Tensor, b: Tensor, tiles: slice) -> tuple[Any, ...]:
        """What the kernels of `average_block` are told."""
        arguments = self._arguments(tiles, torch.float64)
        b = self._tiled(b.detach(), tiles, 1.0)
        return *arguments[:6], self.config.cutoff, b.numpy(), q.detach().contiguous().numpy()

    def _arguments(self, tiles: slice, dtype: torch.dtype) -> tuple[Any, ...]:
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


class _Average(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, b: Tensor, token_map: TokenMap, tiles: slice) -> Tensor:
        ctx.save_for_backward(q, b)
        ctx.token_map, ctx.tiles = token_map, tiles
        average = torch.from_numpy(kernels.average(*token_map._of_average(q, b, tiles)))
        return average.mT.flatten(0, 1)[: len(b)]

    @staticmethod
    def backward(ctx: Any, d_average: Tensor) -> tuple[Tensor | None, ...]:
        q, b = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more
            inputs = (
                q.view_as(q),
                b.view_as(b),
            )  # partial derivatives, should one come from the other
            wanted = [x for x in inputs if x.requires_grad]
            average = ctx.token_map.average_plainly(*inputs, ctx.tiles)
            found = iter(torch.autograd.grad(average, wanted, d_average, create_graph=True))
            return *(next(found) if x.requires_grad else None for x in inputs), None, None
        arguments = ctx.token_map._of_average(q, b, ctx.tiles)
        d_average = ctx.token_map._tiled(d_average.detach(), ctx.tiles)
        d_q, d_b = kernels.average_backward(*arguments, d_average.numpy())  # type: ignore[call-arg]
        d_b = torch.from_numpy(d_b).mT.flatten(0, 1)[: len(b)]
        return torch.from_numpy(d_q), d_b, None, None


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
    """Token index and position of every token, or image of one, that some point may see."""
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
