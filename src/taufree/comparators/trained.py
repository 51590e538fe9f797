"""A comparator with its weights: what it says of a density of the parent."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from taufree.comparators.expert_transformers import Exchange, ExpertTransformers
from taufree.comparators.linear_attention import LinearAttention
from taufree.data.reparent import with_parent
from taufree.data.store import ReferenceDensity
from taufree.errors import UserError, WeightsError
from taufree.evaluation.errors import classic_alpha, compare, errors, exchange_energy
from taufree.functional import hold
from taufree.model.storage import read_weights
from taufree.physics.descriptors import (
    contracted_gradient,
    iso_orbital_indicator,
    kinetic_energy_density,
)
from taufree.physics.kinetic import DEORBITALIZERS
from taufree.physics.parents import PARENTS, parent_named

NETWORKS: dict[str, type[nn.Module]] = {
    "expert_transformers": ExpertTransformers,
    "linear_attention": LinearAttention,
}
TAU_ESTIMATE = "PCopt"
"""The orbital-free τ that `ExpertTransformers` takes in: the best of the analytic ones."""


class Architecture(BaseModel):
    """Which network, for which parent, and its sizes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    comparator: Literal["expert_transformers", "linear_attention"]
    parent: Literal["ms2", "r2scan"] = "ms2"
    network: dict[str, int] = {}

    def build(self) -> nn.Module:
        """A network with random weights.

        Raises
        ------
        UserError
            A size that this network does not have, or that fits no other.
        """
        options: dict[str, Any] = dict(self.network)
        if self.comparator == "expert_transformers":
            options["parent"] = self.parent
        try:
            network = NETWORKS[self.comparator](**options)
        except (TypeError, AssertionError) as error:
            raise UserError(f"[network] of {self.comparator}: {error}.") from error
        network.config = self  # type: ignore[assignment]
        return network


class Comparator:
    """A network of others, ready to be scored like every deorbitalizer."""

    def __init__(self, network: nn.Module, name: str) -> None:
        self.network, self.name = network.eval(), name

    @property
    def parent(self) -> str:
        """The parent's name in libxc."""
        config: Architecture = self.network.config  # type: ignore[assignment]
        return PARENTS[config.parent].xc

    @property
    def device(self) -> torch.device:
        """Where the network runs; densities stay where they are."""
        return next(self.network.parameters()).device

    def errors(self, record: ReferenceDensity) -> dict[str, float]:
        """Errors at a density of the parent, as `taufree.evaluation.errors` defines them."""
        record = with_parent(record, self.parent)
        if isinstance(self.network, LinearAttention):
            return errors(record, torch.stack([self.alpha(*c) for c in channels(record)]))
        found = [self.exchange(*c) for c in channels(record)]
        fields = ("exc", "vrho", "vsigma", "vtau")
        return compare(record, *(torch.stack([getattr(x, f) for x in found]) for f in fields))

    def exchange_energy(self, record: ReferenceDensity) -> float:
        """E_x (Ha) at a density of the parent."""
        if isinstance(self.network, LinearAttention):
            alpha = torch.stack([self.alpha(*c) for c in channels(record)])
            return exchange_energy(parent_named(self.parent), record.density, alpha)
        found = [self.exchange(*c, derivatives=False).exc for c in channels(record)]
        return float(record.density.integral(torch.stack(found)))

    def double(self) -> Comparator:
        """The same network in float64."""
        return Comparator(copy.deepcopy(self.network).double(), self.name)

    def exchange(
        self,
        rho: Tensor,
        grad_rho: Tensor,
        tau: Tensor,
        weights: Tensor,
        coords: Tensor,
        derivatives: bool = True,
    ) -> Exchange:
        """e_x and its partial derivatives, by a network that predicts F_x; zero in the far tail.

        As `ExpertTransformers.exchange`, atomic units.
        """
        assert isinstance(self.network, ExpertTransformers)
        held = hold(rho, grad_rho)[2] > 0
        n, g, t, w, r = (x[held].to(self.device) for x in (rho, grad_rho, tau, weights, coords))
        part = self.network.exchange(n, g, t, w, r, derivatives)
        whole = {}
        for name, values in vars(part).items():
            whole[name] = torch.zeros(len(rho), dtype=values.dtype)
            whole[name][held] = values.cpu()
        return Exchange(**whole)

    @torch.no_grad()
    def alpha(
        self, rho: Tensor, grad_rho: Tensor, tau: Tensor, weights: Tensor, coords: Tensor
    ) -> Tensor:
        """α̃ of a network that predicts τ."""
        rho, grad_rho, held = hold(rho, grad_rho)
        sigma = contracted_gradient(grad_rho)
        kept = held > 0
        dtype = next(self.network.parameters()).dtype
        fields = (x[kept].to(self.device, dtype) for x in (rho, sigma, weights * rho, coords))
        found = torch.zeros_like(rho)
        found[kept] = self.network(*fields).double().cpu()
        return iso_orbital_indicator(rho, sigma, found)


def channels(record: ReferenceDensity) -> list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """ρ, ∇ρ, the estimated τ, weights, coordinates of each spin-unpolarized density n_spin·ρσ."""
    density = record.density
    alpha = classic_alpha(DEORBITALIZERS[TAU_ESTIMATE], record)
    found = []
    for (rho, grad_rho), a in zip(density.unpolarized, alpha, strict=True):
        n, g, held = hold(rho, grad_rho)
        tau = held * kinetic_energy_density(n, contracted_gradient(g), a)
        found.append((rho, grad_rho, tau, density.weights, density.coords))
    return found


def device_at_hand() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_comparator(path: Path) -> Comparator:
    """A network that `taufree train` made of a config with ``comparator``.

    Raises
    ------
    WeightsError
        No such file, one that does not match its checksum, or no comparator's.
    """
    path = path.with_suffix(".safetensors")
    if not path.is_file():
        raise WeightsError(f"No comparator {path}: train one with taufree train.")
    blob, card = read_weights(path)
    try:
        network = Architecture.model_validate(card["config"]).build()
        network.load_state_dict(load(blob))
    except (KeyError, ValidationError, SafetensorError, RuntimeError, UserError) as error:
        raise WeightsError(
            f"{path} holds no comparator of this version; train it again."
        ) from error
    return Comparator(network.to(device_at_hand()), path.stem)
