"""Sparse mixture of experts: a C² router along a regime coordinate, each expert on its points.

The router sees ρ and |∇ρ| alone. One that also saw what points read from tokens learned faster,
and left e_x rough: turning a molecule on its grid changed E_x several times as much (0018).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from taufree.model.config import ModelConfig

N_LOCAL = 2
"""Leading inputs that the router sees: ln(ρ + 1e-6)/4 and s²/(1 + s²)."""
GAIN = 8.0
"""Of the router, so that all experts are in use from the start."""


def gates(u: Tensor, n_experts: int) -> Tensor:
    """Weights of the experts at regime coordinate u in [0, n_experts − 1].

    Expert e sits at u = e and hands over to e ± 1 by the quintic smoothstep, so that at most two
    are active, the weights add up to 1, and they are twice continuously differentiable in u.

    Shapes: (n_points,) -> (n_points, n_experts).
    """
    distance = (u[:, None] - torch.arange(n_experts, dtype=u.dtype, device=u.device)).abs()
    t = (1 - distance).clamp_min(0)
    return t**3 * (10 - 15 * t + 6 * t * t)


class Experts(nn.Module):
    """Perceptrons of one size, (n_points, n_inputs) -> (n_points,)."""

    def __init__(self, n_inputs: int, config: ModelConfig) -> None:
        super().__init__()
        self.n_experts = config.n_experts
        self.router = nn.Sequential(nn.Linear(N_LOCAL, 16), nn.SiLU(), nn.Linear(16, 1))
        widths = [n_inputs] + [config.expert_width] * config.expert_depth
        self.experts = nn.ModuleList(_perceptron(widths) for _ in range(config.n_experts))

    def gates(self, x: Tensor) -> Tensor:
        """(n_points, n_inputs) -> (n_points, n_experts), at most two nonzero in a row."""
        u = self.n_experts * torch.sigmoid(GAIN * self.router(x[:, :N_LOCAL]).squeeze(-1))
        # beyond u = E − 1 the last expert stays alone; the smoothstep is flat there: no kink
        return gates(u.clamp_max(self.n_experts - 1), self.n_experts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sum of the active experts, and the gates."""
        gate = self.gates(x)
        expert, own = gate.detach().T.nonzero().unbind(1)  # sorted by expert
        parts = x.index_select(0, own).split(expert.bincount(minlength=self.n_experts).tolist())
        y = torch.cat([e(part) for e, part in zip(self.experts, parts, strict=True)]).squeeze(1)
        y = x.new_zeros(len(x)).index_add(0, own, gate[own, expert] * y)
        return y, gate

    def densely(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same with every expert run at every point, wherever the gates open."""
        gate = self.gates(x)
        return (gate * torch.cat([e(x) for e in self.experts], 1)).sum(1), gate


def _perceptron(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 1))
