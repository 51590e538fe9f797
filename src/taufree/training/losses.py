"""What training minimizes: terms per electron, of the order of the error in Ha per electron."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taufree.model.network import Network
from taufree.physics.descriptors import C_X
from taufree.physics.parents import PARENTS
from taufree.training.config import TrainingConfig
from taufree.training.reading import read
from taufree.training.samples import Batch

ENERGY_SCALE = 1e-4
"""|ΔE_x| per electron below which its loss turns from linear to quadratic (Ha)."""
RESPONSE_SCALE = 1e-3
"""The same for the error of the energy's change per electron moved (Ha)."""
MOVED_SCALE = 0.02
"""Share of electrons moved below which the response counts less: the draw's noise grows."""


class Losses(nn.Module):
    """The network and its losses on a batch; what Fabric wraps.

    1. ``l1``: ∫|Δe_x| per electron. 2. ``energy``: |ΔE_x| per electron, estimated from two
    independent halves of the drawn points, whose product has no bias from the draw.
    3. ``response``: |ΔE_x[ρ'] − ΔE_x[ρ]| per electron moved, ½∫|ρ' − ρ|, for a second density ρ'
    of the same system on the same points: the error of ∫ (δE_x/δρ) δρ, which decides where
    self-consistency leads. 4. ``balance``: squared departure of each expert's share of the
    electrons from an even one.
    """

    def __init__(self, network: Network, config: TrainingConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Every term and their weighted sum ``total``."""
        exc, gates = self.exchange(batch)
        per_electron = batch.weights / batch.electrons[:, None]
        error = (exc - batch.energy[..., 2]) * per_electron
        halves = 2 * torch.stack([error[:, 0::2].sum(1), error[:, 1::2].sum(1)])
        terms = {"l1": error.abs().sum(1).mean(), "energy": _size(halves, ENERGY_SCALE).mean()}
        if len(batch.base):
            moved = torch.hypot(batch.moved, torch.full_like(batch.moved, MOVED_SCALE)) / 2
            change = (halves[:, batch.other] - halves[:, batch.base]) / moved
            terms["response"] = _size(change, RESPONSE_SCALE).mean()
        rho = (batch.energy[..., 1].double().abs() / abs(C_X)) ** 0.75
        used = (per_electron * rho / len(rho)).flatten() @ gates.double()
        terms["balance"] = ((used - 1 / len(used)) ** 2).sum()
        weights = {
            "l1": 1.0,
            "energy": self.config.energy_weight,
            "response": self.config.response_weight,
            "balance": self.config.balance_weight,
        }
        terms["total"] = sum(
            (weights[name] * term for name, term in terms.items()), torch.zeros_like(terms["l1"])
        )
        return terms

    def exchange(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """e_x at the batch's points, (n_rows, n_points), and the gates (all points, n_experts)."""
        network = self.network
        f = read(batch.groups, *network.answers(batch.seen, batch.bonds), network.config)
        alpha, gates = network.head(batch.local.flatten(0, 1), f.flatten(0, 1))
        p, lda, _ = batch.energy.double().unbind(2)
        enhancement = PARENTS[network.config.parent].enhancement(p.flatten(), alpha.double())
        return lda * enhancement.view_as(lda), gates


def _size(halves: Tensor, scale: float) -> Tensor:
    """|x| for large x, x²/scale for small ones, from two independent estimates of x, (2, ...).

    The gradient is that of the product of the two, which has no bias, over its size.
    """
    return halves[0] * halves[1] / (halves.detach().square().mean(0) + scale**2).sqrt()
