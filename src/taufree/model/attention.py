"""Multi-head self-attention between tokens, of finite range in space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taufree.model.tokens import images


@dataclass(frozen=True)
class Bonds:
    """Directed pairs of tokens (images included, each token with itself) within the cutoff."""

    to: Tensor  # (n_bonds,)
    source: Tensor  # (n_bonds,)
    squared_distance: Tensor  # (n_bonds,)
    fade: Tensor  # (n_bonds,), C(d) = (1 − d²/d_c²)³


def bonds_between(centers: Tensor, lattice: Tensor | None, cutoff: float) -> Bonds:
    """All pairs within the cutoff; ``centers`` (n_tokens, 3), ``lattice`` as in `images`."""
    source, positions = images(centers, lattice, centers, cutoff)
    squared = (centers[:, None] - positions).square().sum(-1)
    to, image = (squared < cutoff**2).nonzero().unbind(1)
    return make_bonds(to, source[image], squared[to, image], cutoff)


def make_bonds(to: Tensor, source: Tensor, squared_distance: Tensor, cutoff: float) -> Bonds:
    """Pairs with their fading at the cutoff."""
    return Bonds(to, source, squared_distance, (1 - squared_distance / cutoff**2) ** 3)


class SelfAttention(nn.Module):
    """Softmax attention with a bias that decays with distance and reaches −∞ at the cutoff.

    Head h weighs token B for token A by softmax_B[q_A·k_B/√d − d_AB²/λ_h² + ln C(d_AB)] with a
    learned length λ_h, so tokens beyond the cutoff are unseen and fragments far apart independent.
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.log_range = nn.Parameter(torch.linspace(1.0, 2.5, n_heads))

    def forward(self, x: Tensor, bonds: Bonds) -> Tensor:
        """(n_tokens, width) -> (n_tokens, width)."""
        n = x.shape[0]  # len() would fix the size in an exported graph
        q, k, v = self.qkv(x).unflatten(1, (3, self.n_heads, -1)).unbind(1)
        score = (q[bonds.to] * k[bonds.source]).sum(-1) / q.shape[-1] ** 0.5  # (n_bonds, n_heads)
        square, fade = bonds.squared_distance.to(score), bonds.fade.to(score)
        score = score - square[:, None] * torch.exp(-2 * self.log_range)
        index = bonds.to[:, None].expand_as(score)
        top = torch.full_like(score[:n], -torch.inf).scatter_reduce(
            0, index, score.detach(), "amax"
        )
        weight = fade[:, None] * torch.exp(score - top[bonds.to])
        total = torch.zeros_like(score[:n]).scatter_add(0, index, weight)
        value = weight[..., None] * v[bonds.source]
        mean = torch.zeros_like(v).index_add(0, bonds.to, value) / total[..., None]
        return self.out(mean.flatten(1))


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer: x + attention(x), then x + perceptron(x)."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = SelfAttention(width, n_heads)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, bonds: Bonds) -> Tensor:
        x = x + self.attention(self.norm_attention(x), bonds)
        return x + self.perceptron(x)
