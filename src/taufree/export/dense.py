"""The functional with nothing in it but PyTorch operations of sizes that are free."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taufree.functional import Functional, hold
from taufree.model.attention import Bonds, bonds_between
from taufree.model.averages import FLOOR, fit, see_averages_plainly, shares, widened, widths
from taufree.model.config import ModelConfig
from taufree.model.network import indicator, local_inputs, token_values
from taufree.model.sight import see_plainly
from taufree.model.tokens import gaussian_features, higher_features
from taufree.physics.descriptors import lda_exchange, reduced_gradient


class DenseExchange(nn.Module):
    """`Functional.energy_density` by sums over all points and nuclei, every expert everywhere.

    No neighbour lists, compiled loops or derivatives written by hand, so that PyTorch can write
    the whole of it into a graph. In float64. Memory grows as n_points · n_centers.
    """

    def __init__(self, functional: Functional) -> None:
        super().__init__()
        self.network = functional.double().network.requires_grad_(False)
        self.parent = functional.parent

    def forward(
        self, rho: Tensor, grad_rho: Tensor, weights: Tensor, coords: Tensor, centers: Tensor
    ) -> Tensor:
        """e_x, energy per volume, (n_points,), of a spin-unpolarized density of a molecule.

        Shapes: (n_points,), (n_points, 3), (n_points,), (n_points, 3), (n_centers, 3).
        """
        return self.energy_density(rho, grad_rho, weights, *self.geometry(coords, centers))

    def geometry(self, coords: Tensor, centers: Tensor) -> tuple[Tensor, Tensor, Bonds]:
        """Displacements and all features Φ, (n_centers, 3 or n_features, n_points), and bonds."""
        config = self.network.config
        r = (coords - centers[:, None]).mT
        return r, gaussian_features(r, config), bonds_between(centers, None, config.cutoff)

    def energy_density(
        self, rho: Tensor, grad_rho: Tensor, weights: Tensor, r: Tensor, phi: Tensor, bonds: Bonds
    ) -> Tensor:
        """The same as `forward` for a geometry that is known."""
        network, config = self.network, self.network.config
        rho, grad_rho, held = hold(rho, grad_rho)
        s = reduced_gradient(rho, grad_rho)
        normalizer = (phi.mT @ shares(config).to(phi)).sum(0) + FLOOR
        c = phi @ token_values(s, weights * rho * held, normalizer)
        z, y = network.answers(c[..., :2], bonds)
        local = local_inputs(rho, s)
        x = see_plainly(local, to_points(phi, z, y, config), config.n_directed)
        b, q = widths(rho, s), fit(c[..., 2:], config)
        average = widened(r, q, b.mT.expand(r.shape[0], -1, -1), config).sum(0).mT
        averages = see_averages_plainly(average, rho, local[:, 1:], b)
        alpha = indicator(x, network.experts.densely(torch.cat([x, averages], 1))[0])
        return held * lda_exchange(rho) * self.parent.enhancement((s * s).sum(1), alpha)


def to_points(phi: Tensor, z: Tensor, y: Tensor, config: ModelConfig) -> Tensor:
    """f = Φ (z, y) of `taufree.model.tokens.TokenMap.to_points`, of all pairs at once."""
    f = [phi.flatten(0, 1).mT @ z.flatten(0, 1)]
    for features, tensors in zip(
        higher_features(phi, config), y.split(config.n_radial[1:], 1), strict=True
    ):
        f.append(torch.einsum("anmi,ank->imk", features, tensors).flatten(1))
    return torch.cat(f, 1)
