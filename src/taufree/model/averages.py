"""Attention of each grid point to the density around it, with a width of its own.

Head h averages the density around r with the Gaussian kernel

    ρ̄_h(r) = ∫ (b/π)^{3/2} exp(−b |r − r'|²) ρ(r') d³r',   b = c_h k_F²(1 + s²),

whose width the point's own density sets: 1/√b ~ 1/k_F where it varies slowly and ~ ρ/|∇ρ| in tails
and at nuclei, so that the averages scale with the density. A sum over all pairs of grid points is
not needed. A Gaussian of exponent a averaged with one of exponent b is

    exp(−a d²) → (b/(a + b))^{3/2} exp(−ab/(a + b) d²),

times (b/(a + b))^l before a solid harmonic. So ρ is written in the Gaussians Φ of the tokens, and
each point sums these, widened, over the tokens in reach (`averaged`).

**The density in Gaussians.** Points share their density out among the tokens, as softmax attention
would: p_A(r) = g(|r − R_A|)/G(r), G(r) = Σ_B g(|r − R_B|) + ε. Each share p_A ρ is fitted by its
own token's Gaussians with weights 1/g: then Φ_Aᵀ is applied to w ρ / G, the same numbers for all
tokens, and the normal equations have the same small matrix for every token and system, one for
each l (decision 0019).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from taufree.model.config import ModelConfig
from taufree.model.kernels import TILE
from taufree.model.kernels import averages as kernels
from taufree.model.tokens import TokenMap, gaussian_exponents, set_threads

HEADS = (0.15, 0.5)
"""c_h: one head sees farther than 1/k_F, one nearer."""
N_SEEN = 3 * len(HEADS)
"""Numbers that an expert sees of the averages."""
SHARES = (0.01, 0.04, 0.15, 0.4, 0.6, 0.5)
"""g = C(d) Σ_n SHARES[n] exp(−a_n d²): about as slow as exp(−2d), smooth at the nucleus. A model
with fewer Gaussians leaves out the sharpest."""
FLOOR = 1e-6
"""ε: where all g are smaller, no token has a share."""
RIDGE = 1e-3
"""Added to the diagonal of the normal equations, in units of it: coefficients stay moderate."""
SOFT = 0.1
"""Of ρ̄/ρ: its logarithm is that of ½(ρ̄/ρ + √((ρ̄/ρ)² + SOFT²)), up to a constant that makes 1 its
zero. A fit may be negative in places."""
PAIRS = 2048
"""Pairs of tile and token that the PyTorch form widens at once; autograd does it anew."""

_HALF_ROOT3 = math.sqrt(3) / 2
_TENSORS = [
    [[0, _HALF_ROOT3, 0], [_HALF_ROOT3, 0, 0], [0, 0, 0]],
    [[0, 0, 0], [0, 0, _HALF_ROOT3], [0, _HALF_ROOT3, 0]],
    [[-0.5, 0, 0], [0, -0.5, 0], [0, 0, 1]],
    [[0, 0, _HALF_ROOT3], [0, 0, 0], [_HALF_ROOT3, 0, 0]],
    [[_HALF_ROOT3, 0, 0], [0, -_HALF_ROOT3, 0], [0, 0, 0]],
]
"""T_m of S_2m(r) = rᵀ T_m r."""


def normalizer(token_map: TokenMap) -> Tensor:
    """G at every point, (n_points,)."""
    z = shares(token_map.config).to(token_map.points).expand(token_map.n_tokens, -1)
    return token_map.to_points(z[..., None])[:, 0] + FLOOR


def shares(config: ModelConfig) -> Tensor:
    """g in the features Φ of one token, (n_features,), float64."""
    known = torch.tensor(SHARES[: config.n_radial[0]], dtype=torch.float64)
    return torch.nn.functional.pad(known, (0, config.n_features - len(known)))


def fit(c: Tensor, config: ModelConfig) -> Tensor:
    """Coefficients q of the density in Gaussians from c = Φᵀ(w ρ / G).

    Shapes: (n_tokens, n_features, 1) -> (n_tokens, n_features), float64.
    """
    parts, start = [], 0
    c = c[..., 0].double()
    for l, inverse in enumerate(_inverses(config)):
        stop = start + len(inverse) * (2 * l + 1)
        part = c[:, start:stop].unflatten(1, (len(inverse), 2 * l + 1))
        parts.append((torch.tensor(inverse, device=c.device) @ part).flatten(1))
        start = stop
    return torch.cat(parts, 1)


@cache
def _inverses(config: ModelConfig) -> list[NDArray[np.float64]]:
    """Inverse of ∫ Φ_n Φ_n' / g for each l, with a ridge, (n_radial[l], n_radial[l])."""
    x, weight = np.polynomial.legendre.leggauss(400)
    x, weight = (x + 1) / 2, weight / 2
    d = config.cutoff * x**3
    weight = weight * 3 * config.cutoff * x**2 * 4 * np.pi * d**2
    exponents = config.min_exponent * 2.0 ** np.arange(config.n_radial[0])[:, None]
    gauss = (1 - d**2 / config.cutoff**2) ** 3 * np.exp(-exponents * d**2)
    g = np.array(SHARES[: len(gauss)]) @ gauss[: len(SHARES)] + FLOOR
    found = []
    for l, n in enumerate(config.n_radial):
        phi = gauss[:n] * exponents[:n] ** (l / 2) * d**l
        matrix = (phi * (weight / g)) @ phi.T / (2 * l + 1)
        size = matrix.diagonal() ** -0.5
        matrix = matrix * size * size[:, None] + RIDGE * np.eye(n)
        found.append(size[:, None] * np.linalg.inv(matrix) * size)
    return found


def widths(rho: Tensor, s: Tensor) -> Tensor:
    """b of every head, bohr⁻²: (n_points,), (n_points, 3) -> (n_points, n_heads)."""
    k_f_squared = (3 * math.pi**2 * rho) ** (2 / 3)
    return (k_f_squared * (1 + (s * s).sum(1)))[:, None] * rho.new_tensor(HEADS)


def averaged(token_map: TokenMap, q: Tensor, b: Tensor) -> Tensor:
    """A density in Gaussians, averaged at every point with kernels of its own widths.

    Parameters
    ----------
    q : Tensor, (n_tokens, n_features), float64
        Coefficients of exp(−a_n d²) a_n^{l/2} S_lm; each token's density fades with C(d).
    b : Tensor, (n_points, n_heads), float64
        Exponents of the kernels.

    Returns
    -------
    (n_points, 4 n_heads): ρ̄ and ∇ρ̄ of each head (of C(d) only the value, not its slope, is in ∇ρ̄).
    """
    blocks = token_map.blocks()
    parts = [averaged_block(token_map, q, b[points], tiles) for points, tiles in blocks]
    return torch.cat([b.new_zeros(0, 4 * b.shape[1]), *parts])[torch.argsort(token_map.order)]


def averaged_block(token_map: TokenMap, q: Tensor, b: Tensor, tiles: slice) -> Tensor:
    """The same at the points of some tiles, whose b are given."""
    if token_map.compiled:
        return _Average.apply(q, b, token_map, tiles)
    return averaged_block_plainly(token_map, q, b, tiles)


def averaged_block_plainly(token_map: TokenMap, q: Tensor, b: Tensor, tiles: slice) -> Tensor:
    """The reference form of `averaged_block`."""
    b_tiles = token_map.tiled(b, tiles, 1.0)  # (n_tiles, n_heads, TILE)
    found = b.new_zeros(len(b_tiles), 4 * b.shape[1], TILE)
    for pairs in token_map.pairs(tiles, PAIRS) or [slice(0)]:  # none at all: once
        tile = token_map.tile[pairs] - tiles.start
        inputs = token_map.displacements(pairs), q[token_map.token[pairs]], b_tiles[tile]
        near = checkpoint(widened, *inputs, token_map.config, use_reentrant=False)
        found = found.index_add(0, tile, near)
    return found.mT.flatten(0, 1)[: len(b)]


def widened(r: Tensor, q: Tensor, b: Tensor, config: ModelConfig) -> Tensor:
    """What one token's Gaussians, widened, add to `averaged` at displacements r.

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


def see_averages(average: Tensor, rho: Tensor, s: Tensor, b: Tensor) -> Tensor:
    """What an expert sees of them, invariant under rotation: (n_points, `N_SEEN`).

    Of each head ln(ρ̄/ρ), and of the vector D = ∇ρ̄ / (2√b ρ̄), damped as D/√(1 + |D|²): its part
    along u = s/√(1 + s²) and its square. D is √b times the mean of r' − r under the kernel.

    Parameters
    ----------
    average : Tensor, (n_points, 4 n_heads)
        ρ̄ and ∇ρ̄ of each head, see `averaged`.
    rho, s, b : Tensor, (n_points,), (n_points, 3), (n_points, n_heads)
    """
    u = s * torch.rsqrt(1 + (s * s).sum(1, keepdim=True))
    if rho.device.type != "cpu":
        return see_averages_plainly(average, rho, u, b)
    return _SeeAverages.apply(average, rho, u, b)


def see_averages_plainly(average: Tensor, rho: Tensor, u: Tensor, b: Tensor) -> Tensor:
    """The reference form of `see_averages`."""
    mean, slope = average.unflatten(1, (-1, 4)).split((1, 3), 2)
    log_ratio = torch.asinh(mean[..., 0] / (SOFT * rho[:, None])) - math.asinh(1 / SOFT)
    dipole = slope / (2 * b.sqrt() * rho[:, None] * log_ratio.exp())[..., None]
    square = (dipole * dipole).sum(2)
    along = (dipole * u[:, None]).sum(2) * torch.rsqrt(1 + square)
    return torch.cat([log_ratio, along, square / (1 + square)], 1)


def _arguments(token_map: TokenMap, q: Tensor, b: Tensor, tiles: slice) -> tuple[Any, ...]:
    """What the kernels of `averaged_block` are told."""
    arguments = token_map.arguments(tiles, torch.float64)[:6]
    b = token_map.tiled(b.detach(), tiles, 1.0)
    return *arguments, token_map.config.cutoff, b.numpy(), q.detach().contiguous().numpy()


class _Average(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, b: Tensor, token_map: TokenMap, tiles: slice) -> Tensor:
        ctx.save_for_backward(q, b)
        ctx.token_map, ctx.tiles = token_map, tiles
        found = torch.from_numpy(kernels.average(*_arguments(token_map, q, b, tiles)))
        return found.mT.flatten(0, 1)[: len(b)]

    @staticmethod
    def backward(ctx: Any, d_average: Tensor) -> tuple[Tensor | None, ...]:
        q, b = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more
            inputs = q.view_as(q), b.view_as(b)  # partial derivatives, should b come from q
            wanted = [x for x in inputs if x.requires_grad]
            again = averaged_block_plainly(ctx.token_map, *inputs, ctx.tiles)
            slopes = iter(torch.autograd.grad(again, wanted, d_average, create_graph=True))
            return *(next(slopes) if x.requires_grad else None for x in inputs), None, None
        arguments = _arguments(ctx.token_map, q, b, ctx.tiles)
        d_average = ctx.token_map.tiled(d_average.detach(), ctx.tiles)
        d_q, d_b = kernels.average_backward(*arguments, d_average.numpy())  # type: ignore[call-arg]
        d_b = torch.from_numpy(d_b).mT.flatten(0, 1)[: len(b)]
        return torch.from_numpy(d_q), d_b, None, None


class _SeeAverages(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        set_threads()
        ctx.save_for_backward(*inputs)
        arrays = (x.detach().contiguous().numpy() for x in inputs)
        return torch.from_numpy(kernels.see_averages(*arrays, SOFT))  # type: ignore[call-arg]

    @staticmethod
    def backward(ctx: Any, d_seen: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more
            # b and u come from ρ: partial derivatives need inputs that do not
            inputs = [x.view_as(x) for x in inputs]
            wanted = [x for x in inputs if x.requires_grad]
            slopes = torch.autograd.grad(
                see_averages_plainly(*inputs), wanted, d_seen, create_graph=True
            )
            found = iter(slopes)
            return tuple(next(found) if x.requires_grad else None for x in inputs)
        set_threads()
        arrays = (x.detach().contiguous().numpy() for x in inputs)
        d_out = d_seen.detach().contiguous().numpy()
        slopes = kernels.see_averages_backward(*arrays, SOFT, d_out)  # type: ignore[call-arg]
        return tuple(map(torch.from_numpy, slopes))
