"""τ by linear attention over all grid points: the "global density approximation".

M. Medvidović et al., arXiv:2410.16408.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taufree.physics.descriptors import tau_uniform, tau_weizsaecker

SAME_EXTENT = 1e-4
"""Extents closer than this part of the largest are equal."""


class LinearAttention(nn.Module):
    """τ from blocks of linear attention over all grid points, the quadrature weights in its sums.

    At width 128 and three blocks it has the published number of parameters, some 650,000.
    """

    def __init__(self, width: int = 128, n_blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 2 * width)
        self.place = FourierPositions(2 * width)
        self.project = nn.Linear(2 * width, width)
        self.blocks = nn.ModuleList(LinearAttentionBlock(width) for _ in range(n_blocks))
        self.norm = nn.LayerNorm(width)
        self.gated = GatedPerceptron(width)
        self.out = nn.Linear(width, 1)

    def forward(self, rho: Tensor, sigma: Tensor, electrons: Tensor, coords: Tensor) -> Tensor:
        """τ (n_points,) in the network's precision; ``electrons`` are w_j ρ_j.

        ρ, σ, electrons: (n_points,), positions: (n_points, 3), atomic units.
        """
        measure = electrons / electrons.sum()
        coords = principal_frame(coords, measure)
        x = torch.log(torch.stack([rho, sigma], 1) + 1e-4)
        x = x - measure @ x
        x = x / (measure @ x.square() + 1e-5).sqrt()
        x = self.project(self.embed(x) * nn.functional.silu(self.place(coords)))
        for block in self.blocks:
            x = block(x, electrons, coords)
        phi = self.out(torch.tanh(self.gated(self.norm(x)))).squeeze(1)
        tau_w = tau_weizsaecker(rho, sigma)
        return tau_w + phi.exp() * (tau_uniform(rho) + 1e-3 * tau_w)


class LinearAttentionBlock(nn.Module):
    """x + Q (Kᵀ W V), then x + gated perceptron; Q and K turn with the position (rotary)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.phase = nn.Linear(3, width // 2, bias=False)
        self.norm = nn.LayerNorm(width)
        self.gated = GatedPerceptron(width)

    def forward(self, x: Tensor, electrons: Tensor, coords: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, 1)
        phase = self.phase(coords)
        q, k = (rotate(unit_norm(a, electrons), phase) for a in (q, k))
        x = x + q @ (k.T @ (electrons[:, None] * v)) / x.shape[1]
        return x + self.gated(self.norm(x))


class GatedPerceptron(nn.Module):
    """Linear(a · silu(b)), hidden width twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into = nn.Linear(width, 4 * width)
        self.out = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.into(x).chunk(2, 1)
        return self.out(a * nn.functional.silu(b))


class FourierPositions(nn.Module):
    """Sines and cosines of random projections of the position, mixed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.phase = nn.Linear(3, width // 2, bias=False)
        self.mix = nn.Linear(width, width)

    def forward(self, coords: Tensor) -> Tensor:
        phase = self.phase(coords)
        return self.mix(torch.cat([phase.cos(), phase.sin()], 1) / phase.shape[1] ** 0.5)


def rotate(x: Tensor, phase: Tensor) -> Tensor:
    """Turn pairs of channels by an angle each: (n, 2k), (n, k) -> (n, 2k)."""
    a, b = x.chunk(2, 1)
    c, s = phase.cos(), phase.sin()
    return torch.cat([a * c - b * s, a * s + b * c], 1)


def unit_norm(x: Tensor, electrons: Tensor) -> Tensor:
    """Channels scaled to ∫ρ x² = 1."""
    return x / (electrons @ x.square() + 1e-5).sqrt()


def principal_frame(coords: Tensor, measure: Tensor) -> Tensor:
    """Positions in the frame of the density's principal axes, in units of its extents.

    Shapes: coords (n_points, 3), the share of the electrons at each, measure (n_points,) ->
    (n_points, 3). Differentiable by the measure: extents and axes follow it to first order, as
    eigenvalues and eigenvectors do; axes of equal extents, which have no derivative, stay.
    """
    r = coords - measure @ coords
    spread = (r * measure[:, None]).T @ r
    axes = torch.linalg.eigh(spread.detach())[1]
    turned = axes.T @ spread @ axes  # diagonal, but its derivative is not
    extents = turned.diagonal()
    gaps = (extents - extents[:, None]).detach()
    distinct = gaps.abs() > SAME_EXTENT * extents.detach().max()
    rotation = torch.where(distinct, turned / torch.where(distinct, gaps, 1.0), 0.0)
    return (r @ (axes + axes @ rotation)) / (extents + 1e-5).sqrt()
