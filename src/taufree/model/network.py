"""The network: density on the grid -> tokens -> encoder -> grid -> experts -> α̃."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from taufree.model.attention import Bonds, EncoderLayer
from taufree.model.averages import N_SEEN
from taufree.model.config import ModelConfig
from taufree.model.experts import Experts
from taufree.model.sight import see
from taufree.model.tokens import gaussian_exponents

ELECTRONS_TINY = 1e-3
"""Density (bohr⁻³) below which what a token sees fades out."""
LOG_FLOOR = 1e-6
"""Density (bohr⁻³) below which the network no longer tells densities apart."""
UNIFORM = math.log(math.e - 1)
"""softplus(UNIFORM) = 1"""


class Network(nn.Module):
    """α̃(r; [ρ]) ≥ 0 of a spin-unpolarized density."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        n0, higher = config.n_radial[0], config.n_radial[1:]
        width, n_read, n_mix = config.width, config.n_read, config.n_mix
        self.embed = nn.Sequential(
            nn.Linear(2 * n0 + sum(n * (2 * n + 1) for n in higher), width),
            nn.SiLU(),
            nn.Linear(width, width),
        )
        self.encoder = nn.ModuleList(
            EncoderLayer(width, config.n_heads) for _ in range(config.n_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.scalars = nn.Linear(width, n0 * n_read)
        self.mix = nn.ParameterList(nn.Parameter(torch.randn(n_mix, 2 * n) / n) for n in higher)
        self.spread = nn.ParameterList(
            nn.Parameter(torch.randn(n, n_mix, n_read) / n) for n in higher
        )
        self.vector_gates = nn.Linear(width, len(higher) * n_mix * n_read)
        self.tensors = nn.Linear(width, config.n_tensor_features * config.n_directed)
        self.experts = Experts(2 + n_read + 4 * config.n_directed + N_SEEN, config)

    def read_density(self, c: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Invariants of what each token sees, and its tensors for l ≥ 1, of order one.

        ``c`` (n_tokens, n_features, 2) is Φᵀ applied to the first two of `token_values`.
        """
        n0, higher = self.config.n_radial[0], self.config.n_radial[1:]
        volume = (
            gaussian_exponents(self.config).to(c) / math.pi
        ) ** 1.5  # of the normalized Gaussian
        average = c[:, :n0] * volume[:, None]  # densities, (n_tokens, n0, 2)
        floor = average[:, :, :1].clamp_min(0) + ELECTRONS_TINY
        invariants = [torch.log(floor[..., 0]) / 3, average[..., 1] / floor[..., 0]]
        tensors, start = [], n0
        for l, n in enumerate(higher, 1):
            stop = start + n * (2 * l + 1)
            t = c[:, start:stop].unflatten(1, (n, 2 * l + 1))
            t = t * volume[:n, None, None] / floor[:, :n, None]  # (n_tokens, n, 2l+1, 2)
            t = t.transpose(2, 3).flatten(1, 2)  # (n_tokens, 2n, 2l+1)
            row, column = torch.triu_indices(2 * n, 2 * n, device=t.device)
            invariants.append((t @ t.mT)[:, row, column])
            tensors.append(t)
            start = stop
        return torch.cat(invariants, 1), tensors

    def answers(self, c: Tensor, bonds: Bonds) -> tuple[Tensor, Tensor]:
        """What tokens offer to grid points: z and y of `TokenMap.to_points`."""
        config = self.config
        invariants, tensors = self.read_density(c)
        x = self.embed(invariants)
        for layer in self.encoder:
            x = layer(x, bonds)
        x = self.norm(x)
        z = [self.scalars(x).unflatten(1, (config.n_radial[0], config.n_read))]
        gate = self.vector_gates(x).unflatten(1, (len(tensors), config.n_mix, config.n_read))
        for l, t in enumerate(tensors):
            mixed = self.mix[l] @ t  # (n_tokens, n_mix, 2l+1)
            out = torch.einsum("aqm,nqk,aqk->anmk", mixed, self.spread[l], gate[:, l])
            z.append(out.flatten(1, 2))
        y = self.tensors(x).unflatten(1, (config.n_tensor_features, config.n_directed))
        return torch.cat(z, 1), y

    def head(self, local: Tensor, f: Tensor, averages: Tensor) -> tuple[Tensor, Tensor]:
        """α̃ (n_points,) and gates (n_points, n_experts) from what is known at each point.

        ``averages`` as of `see_averages`, (n_points, N_SEEN).
        """
        x = see(local, f, self.config.n_directed)
        y, gate = self.experts(torch.cat([x, averages], 1))
        return indicator(x, y), gate


def indicator(x: Tensor, y: Tensor) -> Tensor:
    """α̃ from what a point sees (`see`) and the output y of the experts, (n_points,).

    y is damped by g = 1 − exp(−t − |f|²), t = s²/(1 + s²): with no gradient and no token in reach,
    as in the uniform gas, α̃ = 1 exactly.
    """
    damping = -torch.expm1(-x[:, 1] - (x[:, 2:] ** 2).sum(1))
    return nn.functional.softplus(UNIFORM + damping * y)


def local_inputs(rho: Tensor, s: Tensor) -> Tensor:
    """Bounded local inputs ln(ρ + 1e-6)/4 and u = s/√(1 + |s|²): (n_points,), (n_points, 3) -> 4.

    ``s`` is the vector of `taufree.physics.descriptors.reduced_gradient`.
    """
    u = s * torch.rsqrt(1 + (s * s).sum(1, keepdim=True))
    return torch.cat([torch.log(rho + LOG_FLOOR)[:, None] / 4, u], 1)


def token_values(s: Tensor, electrons: Tensor, normalizer: Tensor) -> Tensor:
    """What a token sums up of each grid point, (n_points, 3).

    m and m t, t = |u|² = s²/(1 + s²), which the encoder sees, and m/G, G as `normalizer`, of which
    `fit` makes the density in Gaussians.
    """
    p = (s * s).sum(1)
    return torch.stack([electrons, electrons * p / (1 + p), electrons / normalizer], -1)
