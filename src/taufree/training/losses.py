"""What training minimizes: terms per electron, of the order of the error in Ha per electron."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from taufree.functional import leaf
from taufree.model.network import Network
from taufree.physics.descriptors import C_X
from taufree.physics.parents import PARENTS
from taufree.training.config import TrainingConfig
from taufree.training.reading import read
from taufree.training.relaxation import Molecule, energy_errors
from taufree.training.samples import Batch
from taufree.training.volumes import Crystal, slope_error

ENERGY_SCALE = 2e-5
"""|ΔE_x| per electron below which its loss turns from linear to quadratic (Ha)."""
RESPONSE_SCALE = 3e-4
"""The same for the error of the energy's change per electron moved (Ha)."""
SLOPE_SCALE = 5e-4
"""The same for the error of an energy-volume curve's slope (Ha per atom)."""
MOVED_SCALE = 0.02
"""Share of electrons moved below which the response counts less: the draw's noise grows."""


class Losses(nn.Module):
    """The network and its losses on a batch; what Fabric wraps.

    1. ``l1``: ∫|Δe_x| per electron. 2. ``energy``: |ΔE_x| per electron, estimated from two
    independent halves of the drawn points, whose product has no bias from the draw.
    3. ``response``: |ΔE_x[ρ'] − ΔE_x[ρ]| per electron moved, ½∫|ρ' − ρ|, for a second density ρ'
    of the same system on the same points: the error of ∫ (δE_x/δρ) δρ, which decides where
    self-consistency leads. 4. ``derivatives``: ∫ |LDA| (|Δ∂F_x/∂α| + p |Δ∂F_x/∂p|) per electron,
    the parent's partial derivatives at α̃ against those at α. 5. ``relaxation``: E_relax per
    electron of whole molecules, see `taufree.training.relaxation`. 6. ``self_consistent``:
    |ΔE_x − E_relax| per electron of the same molecules, weighed as ``energy``. 7. ``slope``: the
    error per atom of the slope of an energy-volume curve, see `taufree.training.volumes`.
    8. ``balance``: squared departure of each expert's share of the electrons from an even one.
    """

    def __init__(self, network: Network, config: TrainingConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config

    def forward(
        self,
        batch: Batch,
        molecules: Sequence[Molecule] = (),
        volumes: tuple[Crystal, Crystal] | None = None,
    ) -> dict[str, Tensor]:
        """Every term and their weighted sum ``total``."""
        alpha, gates = self.alpha(batch)
        p, lda, known = batch.known.double().unbind(2)
        per_electron = batch.weights / batch.electrons[:, None]
        factor, *slopes = self._enhancement(p, alpha)
        parent_factor, *parent_slopes = (x.detach() for x in self._enhancement(p, leaf(known)))
        error = lda * (factor - parent_factor) * per_electron
        halves = 2 * torch.stack([error[:, 0::2].sum(1), error[:, 1::2].sum(1)])
        terms = {"l1": error.abs().sum(1).mean(), "energy": _size(halves, ENERGY_SCALE).mean()}
        if len(batch.base):
            moved = torch.hypot(batch.moved, torch.full_like(batch.moved, MOVED_SCALE)) / 2
            change = (halves[:, batch.other] - halves[:, batch.base]) / moved
            terms["response"] = _size(change, RESPONSE_SCALE).mean()
        if slopes:
            by_p, by_alpha = ((a - b).abs() for a, b in zip(slopes, parent_slopes, strict=True))
            size = (lda * per_electron).abs() * (by_alpha + p * by_p)
            terms["derivatives"] = size.sum(1).mean()
        if molecules:
            e_x, relaxation = energy_errors(self.network, molecules, create_graph=True)
            electrons = e_x.new_tensor([m.system.n_electrons for m in molecules])
            terms["relaxation"] = (relaxation / electrons).mean()
            whole = (e_x - relaxation) / electrons
            terms["self_consistent"] = _size(whole.expand(2, -1), ENERGY_SCALE).mean()
        if volumes:
            slope = slope_error(self.network, *volumes)
            terms["slope"] = _size(slope.expand(2), SLOPE_SCALE)
        rho = (lda / C_X) ** 0.75
        used = (per_electron * rho / len(rho)).flatten() @ gates.double()
        terms["balance"] = ((used - 1 / len(used)) ** 2).sum()
        weights = {
            "l1": 1.0,
            "energy": self.config.energy_weight,
            "response": self.config.response_weight,
            "derivatives": self.config.derivative_weight,
            "relaxation": self.config.relaxation_weight,
            "self_consistent": self.config.energy_weight,
            "slope": self.config.slope_weight,
            "balance": self.config.balance_weight,
        }
        terms["total"] = sum(
            (weights[name] * term for name, term in terms.items()), torch.zeros_like(terms["l1"])
        )
        return terms

    def _enhancement(self, p: Tensor, alpha: Tensor) -> tuple[Tensor, ...]:
        """F_x and, where they are asked for, ∂F_x/∂p and ∂F_x/∂α."""
        enhancement = PARENTS[self.network.config.parent].enhancement
        if not self.config.derivative_weight:
            return (enhancement(p, alpha),)
        p = leaf(p)
        factor = enhancement(p, alpha)
        return factor, *torch.autograd.grad(factor.sum(), (p, alpha), create_graph=True)

    def alpha(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """α̃ at the batch's points, (n_rows, n_points), and the gates (all points, n_experts)."""
        network = self.network
        f = read(batch.groups, *network.answers(batch.seen, batch.bonds), network.config)
        inputs = (x.flatten(0, 1) for x in (batch.local, f, batch.averages))
        alpha, gates = network.head(*inputs)
        return alpha.double().view_as(batch.weights), gates

    def error(self, batch: Batch) -> Tensor:
        """e_x less the parent's at the batch's points, (n_rows, n_points)."""
        enhancement = PARENTS[self.network.config.parent].enhancement
        p, lda, known = batch.known.double().unbind(2)
        return lda * (enhancement(p, self.alpha(batch)[0]) - enhancement(p, known))


def _size(halves: Tensor, scale: float) -> Tensor:
    """|x| for large x, x²/scale for small ones, from two independent estimates of x, (2, ...).

    The gradient is that of the product of the two, which has no bias, over its size.
    """
    return halves[0] * halves[1] / (halves.detach().square().mean(0) + scale**2).sqrt()
