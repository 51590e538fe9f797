"""What training minimizes: terms per electron, of the order of the error in Ha per electron."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taufree.model.network import Network
from taufree.physics.descriptors import C_X
from taufree.physics.parents import PARENTS
from taufree.training.config import TrainingConfig
from taufree.training.samples import Batch

ENERGY_SCALE = 1e-4
"""|ΔE_x| per electron below which its loss turns from linear to quadratic (Ha)."""


class Losses(nn.Module):
    """The network and its losses on a batch; what Fabric wraps.

    1. ``l1``: ∫|Δe_x| per electron. 2. ``energy``: |ΔE_x| per electron, estimated from two
    independent halves of the drawn points, whose product has no bias from the draw.
    3. ``balance``: squared departure of each expert's share of the electrons from an even one.
    """

    def __init__(self, network: Network, config: TrainingConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Every term and their weighted sum ``total``."""
        exc, gates = self.exchange(batch)
        electrons = torch.tensor([s.electrons for s in batch.samples], dtype=torch.float64)
        error = (exc - batch.exc) * batch.weights / electrons[batch.owner]
        n = len(electrons)
        terms = {"l1": error.abs().sum() / n}
        halves = error.new_zeros(2, n).index_put(
            (batch.half, batch.owner), 2 * error, accumulate=True
        )
        scale = (halves.detach().square().mean(0) + ENERGY_SCALE**2).sqrt()
        terms["energy"] = (halves[0] * halves[1] / scale).mean()
        rho = (batch.lda / C_X) ** 0.75
        used = (batch.weights * rho / electrons[batch.owner] / n) @ gates.double()
        terms["balance"] = ((used - 1 / len(used)) ** 2).sum()
        config = self.config
        terms["total"] = (
            terms["l1"]
            + config.energy_weight * terms["energy"]
            + config.balance_weight * terms["balance"]
        )
        return terms

    def exchange(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """e_x at the batch's points, (n_points,), and the gates."""
        network = self.network
        read = batch.token_map.to_points(*network.answers(batch.seen, batch.bonds))
        alpha, gates = network.head(batch.local, read)
        enhancement = PARENTS[network.config.parent].enhancement(batch.p, alpha.double())
        return batch.lda * enhancement, gates
