"""The main path: density on a grid → descriptors → attention → experts → α̃ → e_x → potential."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from taufree.model.attention import Bonds, bonds_between, make_bonds
from taufree.model.averages import (
    averaged,
    averaged_block,
    fit,
    normalizer,
    see_averages,
    widths,
)
from taufree.model.network import Network, local_inputs, token_values
from taufree.model.tokens import TokenMap, images
from taufree.physics.descriptors import (
    contracted_gradient,
    kinetic_energy_density,
    lda_exchange,
    reduced_gradient,
)
from taufree.physics.parents import PARENTS, Parent

RHO_THRESHOLD = 1e-9
"""Points with a smaller (spin-scaled) density are dropped; e_x there is below 1e-12 Ha/bohr³."""


@dataclass(frozen=True)
class Geometry:
    """What depends on grid points and nuclei alone, built once for an SCF."""

    token_map: TokenMap
    bonds: Bonds
    normalizer: Tensor
    """G of `taufree.model.averages` at every point, (n_points,)."""


@dataclass(frozen=True)
class Seam:
    """Where positions enter E_x: features Φ, averages ρ̄, and squared distances d² between tokens.

    ∂E_x = Σ values ∂Φ vseen + Σ vread ∂Φ (z, y) + Σ vaverage ∂ρ̄ + Σ vnormalizer ∂G + Σ vbonds ∂d².
    Tokens read ``values`` (n_points, 3), points read ``z`` and ``y`` (see `TokenMap.to_points`) and
    averages of ``q`` with ``widths`` (see `averaged`); ``vseen``, ``vread``, ``vaverage``,
    ``vnormalizer`` and ``vbonds`` are ∂E_x by what tokens and points have read, by the averages, by
    G and by d². See `taufree.motion`.
    """

    values: Tensor
    vseen: Tensor
    vread: Tensor
    z: Tensor
    y: Tensor
    vaverage: Tensor
    q: Tensor
    widths: Tensor
    vnormalizer: Tensor
    vbonds: Tensor


@dataclass(frozen=True)
class Potential:
    """Exchange energy per volume, and derivatives of the energy by every value on the grid.

    ``vrho`` (n_points,) and ``vgrad`` (n_points, 3) are ∂E_x/∂ρ_j and ∂E_x/∂∇ρ_j, weights included:
    the full functional derivative, through attention. ``exc`` (n_points,) is the energy per volume,
    ``vweight`` (n_points,) is ∂E_x/∂w_j, ``alpha`` (n_points,) is α̃, ``gates``
    (n_points, n_experts) are the experts' weights, ``seam`` is where positions enter.
    """

    exc: Tensor
    vrho: Tensor
    vgrad: Tensor
    vweight: Tensor
    alpha: Tensor
    gates: Tensor
    seam: Seam


class Functional:
    """A deorbitalized exchange functional of one spin-unpolarized density.

    Spin-polarized densities follow from exact spin scaling, E_x[ρ↑,ρ↓] = ½E_x[2ρ↑] + ½E_x[2ρ↓].
    """

    def __init__(
        self,
        network: Network,
        name: str = "",
        elements: Iterable[str] = (),
        pseudopotentials: Iterable[str] = (),
    ) -> None:
        self.network = network.eval()
        self.name = name
        self.elements = frozenset(elements)
        """Symbols of the elements it was trained on; empty where that is not known."""
        self.pseudopotentials = frozenset(pseudopotentials)
        """Those of the elements it was trained on with pseudopotentials, too."""

    @property
    def parent(self) -> Parent:
        return PARENTS[self.network.config.parent]

    @property
    def dtype(self) -> torch.dtype:
        """Precision inside the network; energies are summed in float64 in any case."""
        return next(self.network.parameters()).dtype

    def double(self) -> Functional:
        """The same functional with its network in float64."""
        return self._with(copy.deepcopy(self.network).double())

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> Functional:
        """The same functional with its network on ``device``: there it runs in every host."""
        return self._with(copy.deepcopy(self.network).to(device))

    def _with(self, network: Network) -> Functional:
        return Functional(network, self.name, self.elements, self.pseudopotentials)

    def geometry(self, coords: Tensor, centers: Tensor, lattice: Tensor | None = None) -> Geometry:
        """Neighbour lists.

        Parameters
        ----------
        coords, centers : Tensor, (n_points, 3) and (n_centers, 3), bohr
        lattice : Tensor, (n_periodic, 3), or None
            Vectors along which the system repeats.
        """
        config = self.network.config
        visible = images(centers, lattice, coords, config.cutoff)
        token_map = TokenMap(config, coords, len(centers), *visible)
        bonds = bonds_between(centers, lattice, config.cutoff)
        return Geometry(token_map, bonds, normalizer(token_map))

    def energy_density(
        self, rho: Tensor, grad_rho: Tensor, weights: Tensor, geometry: Geometry
    ) -> Tensor:
        """e_x(r) = ρ ε_x^LDA F_x(p, α̃), energy per volume, (n_points,); the reference form.

        Plain and differentiable to any order in ``rho`` (n_points,) and ``grad_rho`` (n_points, 3);
        `potential` is the fast form for a host. E_x = Σ_j w_j e_x(r_j).
        """
        token_map = geometry.token_map
        rho, grad_rho, held = hold(rho, grad_rho)
        s = reduced_gradient(rho, grad_rho)
        values = token_values(s, weights * rho * held, geometry.normalizer)
        z, y, q = self.answers(token_map.to_tokens(values.to(self.dtype)), geometry.bonds)
        b = widths(rho, s)
        average = averaged(token_map, q, b)
        return held * self.at_points(rho, s, b, token_map.to_points(z, y), average)[0]

    def answers(self, c: Tensor, bonds: Bonds) -> tuple[Tensor, Tensor, Tensor]:
        """What tokens offer to points, z, y of `TokenMap.to_points` and q of `averaged`.

        ``c`` (n_tokens, n_features, 3) is Φᵀ applied to `token_values`.
        """
        return *self.network.answers(c[..., :2], bonds), fit(c[..., 2:], self.network.config)

    def at_points(
        self, rho: Tensor, s: Tensor, b: Tensor, f: Tensor, average: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """e_x, α̃ and gates where ρ, s, widths b and what points read and average are known."""
        averages = see_averages(average, rho, s, b)
        local = local_inputs(rho, s)
        alpha, gates = self.network.head(local.to(self.dtype), f, averages.to(self.dtype))
        alpha = alpha.double()
        return lda_exchange(rho) * self.parent.enhancement((s * s).sum(1), alpha), alpha, gates

    @torch.no_grad()
    def tau(self, rho: Tensor, grad_rho: Tensor, weights: Tensor, geometry: Geometry) -> Tensor:
        """τ̃ = τ_W + α̃ τ_unif, (n_points,), for a correlation that needs it; no derivatives."""
        token_map = geometry.token_map
        rho, grad_rho, held = hold(rho, grad_rho)
        s = reduced_gradient(rho, grad_rho)
        values = token_values(s, weights * rho * held, geometry.normalizer)
        z, y, q = self.answers(token_map.to_tokens(values.to(self.dtype)), geometry.bonds)
        tau = torch.empty_like(rho)
        for points, tiles in token_map.blocks():
            n, b = rho[points], widths(rho[points], s[points])
            average = averaged_block(token_map, q, b, tiles)
            alpha = self.at_points(n, s[points], b, token_map.scatter(z, y, tiles), average)[1]
            tau[points] = kinetic_energy_density(n, contracted_gradient(grad_rho[points]), alpha)
        return tau * held

    def potential(
        self,
        rho: Tensor,
        grad_rho: Tensor,
        weights: Tensor,
        geometry: Geometry,
        vtau: Tensor | None = None,
    ) -> Potential:
        """Energy and functional derivative, block by block in bounded memory.

        With ``vtau`` (n_points,), the derivatives are those of E_x + Σ_j vtau_j τ̃_j: for a
        correlation energy of τ̃, whose ∂E_c/∂τ̃_j goes in here and so through the network.

        `energy_density` cut at its two linear maps: tokens read the density; each block of points
        reads the tokens, runs its experts and goes backward at once; what flows back into the
        tokens is spread over the points at the end.
        """
        token_map, network = geometry.token_map, self.network
        rho, grad_rho, held = hold(rho, grad_rho)
        s = reduced_gradient(rho, grad_rho)
        values = token_values(s, weights * rho * held, geometry.normalizer)
        seen = token_map.to_tokens(values.to(self.dtype)).requires_grad_()
        bonds = geometry.bonds
        square = leaf(bonds.squared_distance)
        with torch.enable_grad():
            bonds = make_bonds(bonds.to, bonds.source, square, network.config.cutoff)
            answers = self.answers(seen, bonds)
        z, y, q = (x.detach() for x in answers)
        d_z, d_y, d_q = (torch.zeros_like(x, dtype=torch.float64) for x in answers)

        exc, alpha, vrho = (torch.empty_like(rho) for _ in range(3))
        vgrad = torch.empty_like(grad_rho)
        vread = z.new_empty(len(rho), z.shape[2] + 8 * y.shape[2])
        b = widths(rho, s)
        vaverage = b.new_empty(len(rho), 4 * b.shape[1])
        gates = rho.new_empty(len(rho), network.config.n_experts, dtype=self.dtype)
        for points, tiles in token_map.blocks():
            with torch.enable_grad():
                n, g = leaf(rho[points]), leaf(grad_rho[points])
                f, q_block = leaf(token_map.scatter(z, y, tiles)), leaf(q)
                s_block = reduced_gradient(n, g)
                width = widths(n, s_block)
                average = averaged_block(token_map, q_block, width, tiles)
                e, a, gate = self.at_points(n, s_block, width, f, average)
                e = held[points] * e
                energy = weights[points] @ e
                if vtau is not None:
                    tau = kinetic_energy_density(n, contracted_gradient(g), a)
                    energy = energy + (vtau * held)[points] @ tau
                found = torch.autograd.grad(energy, (n, g, f, q_block, average))
            exc[points], alpha[points] = e.detach(), a.detach()
            gates[points] = gate.detach()
            vrho[points], vgrad[points], vread[points] = found[:3]
            share_z, share_y = token_map.gather(found[2], network.config.n_directed, tiles)
            d_z += share_z
            d_y += share_y
            d_q += found[3]
            vaverage[points] = found[4]

        d_answers = d_z.to(self.dtype), d_y.to(self.dtype), d_q
        found = torch.autograd.grad(answers, (seen, square), d_answers, materialize_grads=True)
        d_seen, d_square = found  # without an encoder distances count for nothing
        inputs = rho, grad_rho, weights, geometry.normalizer
        d_rho, d_grad, d_weight, vnormalizer = self._by_points(d_seen, *inputs, held, token_map)
        vrho, vgrad = (vrho + d_rho) * held, (vgrad + d_grad) * held[:, None]
        vweight = exc + d_weight
        seam = Seam(values, d_seen, vread, z, y, vaverage, q, b, vnormalizer, d_square)
        return Potential(exc, vrho, vgrad, vweight, alpha, gates, seam)

    def _by_points(
        self,
        d_seen: Tensor,
        rho: Tensor,
        grad_rho: Tensor,
        weights: Tensor,
        norm: Tensor,
        held: Tensor,
        token_map: TokenMap,
    ) -> list[Tensor]:
        """∂E_x by ρ, ∇ρ, w and G of every point, from that by what tokens read of it."""
        inputs, none = (rho, grad_rho, weights, norm), token_map.no_tensors(d_seen)
        found = [torch.empty_like(x) for x in inputs]
        for points, tiles in token_map.blocks():
            with torch.enable_grad():
                n, g, w, normalizer = block = [leaf(x[points]) for x in inputs]
                v = token_values(reduced_gradient(n, g), w * n * held[points], normalizer)
                d_v = token_map.scatter(d_seen, none, tiles).double()
                parts = torch.autograd.grad(v, block, d_v)
            for whole, part in zip(found, parts, strict=True):
                whole[points] = part
        return found


def hold(rho: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ρ and ∇ρ (or σ) made safe to divide by, and the mask (1 or 0) of the points that count."""
    held = rho > RHO_THRESHOLD
    mask = held if gradient.shape == held.shape else held[..., None]
    return torch.where(held, rho, 1.0), torch.where(mask, gradient, 0.0), held.to(rho.dtype)


def leaf(x: Tensor) -> Tensor:
    """Detached, in the same memory, to collect a gradient of its own."""
    return x.detach().requires_grad_()
