"""Transformers over grid points, one of four for each point: the source paper's system.

A. Chaudhari and A. J. Logsdail, ChemRxiv 2025, doi:10.26434/chemrxiv-2025-mrgzj-v2. Published size:
experts of width 512, 8 layers, 8 heads, a router of 2 layers and 2 heads, chunks of 4,000 points.
Its τ input, the output of another network there, is here any orbital-free estimate of τ. Large
inputs are compressed by arsinh, so that cores and tails can both be told apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taufree.functional import leaf
from taufree.model.tokens import solid_harmonics
from taufree.physics.descriptors import (
    RHO_TINY,
    contracted_gradient,
    iso_orbital_indicator,
    lda_exchange,
    reduced_gradient_squared,
    tau_uniform,
    tau_weizsaecker,
)
from taufree.physics.parents import PARENTS, partial_derivatives

N_FEATURES = 13
N_PARTIAL = 4
"""The parent's e_x and its derivatives at the estimated τ, which the router is given too."""
N_EXPERTS = 4
SCALE = 1e-3
"""Below, a feature enters linearly; above, by its logarithm."""


@dataclass(frozen=True)
class Exchange:
    """e_x, its partial derivatives (zero if not asked for), the expert chosen; (n_points,) each."""

    exc: Tensor
    vrho: Tensor
    vsigma: Tensor
    vtau: Tensor
    chosen: Tensor


class GridTransformer(nn.Module):
    """Transformer encoder over grid points with spherical-harmonic positions (l ≤ 3).

    Shapes: features (n_points, n_inputs), coords (n_points, 3) -> (n_points, n_outputs).
    """

    def __init__(
        self, n_inputs: int, n_outputs: int, width: int, n_layers: int, n_heads: int
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(n_inputs, width)
        self.place = nn.Sequential(nn.Linear(17, width), nn.GELU(), nn.Linear(width, width))
        self.norm_in = nn.LayerNorm(width)
        layer = nn.TransformerEncoderLayer(width, n_heads, 4 * width, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
        self.norm_out = nn.LayerNorm(width)
        self.out = nn.Sequential(
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, width // 2),
            nn.GELU(),
            nn.Linear(width // 2, n_outputs),
        )

    def forward(self, features: Tensor, coords: Tensor, local: bool = False) -> Tensor:
        """With ``local`` derivatives are those of a point by its own features, others held."""
        x = self.norm_in(self.embed(features) + self.place(angular_positions(coords)))[None]
        for layer in self.encoder.layers:
            x = layer.norm1(x + attend(layer.self_attn, x, local))
            x = layer.norm2(x + layer.linear2(layer.activation(layer.linear1(x))))
        return self.out(self.norm_out(x[0]))


def attend(attention: nn.MultiheadAttention, x: Tensor, local: bool) -> Tensor:
    """Self-attention of x (1, n_points, width); with ``local`` keys and values of others are held.

    A point's own key and value, on the diagonal, stay variable.
    """
    qkv = nn.functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = (
        part.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, 2)
    )
    if local:
        own = torch.linalg.vecdot(q, k - k.detach())  # zero, but its derivative is not
        scores = q @ k.detach().mT + torch.diag_embed(own)
        share = (scores / q.shape[-1] ** 0.5).softmax(-1)
        read = share @ v.detach() + share.diagonal(dim1=2, dim2=3)[..., None] * (v - v.detach())
    else:
        read = nn.functional.scaled_dot_product_attention(q, k, v)
    return attention.out_proj(read.transpose(1, 2).flatten(2))


class ExpertTransformers(nn.Module):
    """A gating transformer sends each grid point to one of four transformers, by hard arg-max."""

    def __init__(
        self,
        width: int = 512,
        n_layers: int = 8,
        n_heads: int = 8,
        chunk: int = 4000,
        parent: str = "ms2",
    ) -> None:
        super().__init__()
        self.chunk, self.parent = chunk, PARENTS[parent]
        self.router = GridTransformer(N_FEATURES + N_PARTIAL, N_EXPERTS, width, 2, 2)
        self.experts = nn.ModuleList(
            GridTransformer(N_FEATURES, 1, width, n_layers, n_heads) for _ in range(N_EXPERTS)
        )

    def route(self, features: Tensor, partial: Tensor, coords: Tensor) -> Tensor:
        """Score of each expert at the points of one chunk, (n_points, 4)."""
        return self.router(torch.cat([features, partial], 1), coords)

    def forward(
        self, features: Tensor, coords: Tensor, chosen: Tensor, local: bool = False
    ) -> Tensor:
        """F_x (n_points,) of one chunk; each expert sees its own points and no others.

        Features (n_points, 13), positions (n_points, 3), the expert of each point (n_points,);
        ``local`` as `GridTransformer.forward` takes it.
        """
        enhancement = features.new_ones(len(features))
        for e, expert in enumerate(self.experts):
            own = (chosen == e).nonzero().squeeze(1)
            if len(own):
                value = 1 + expert(features[own], coords[own], local).squeeze(1)
                enhancement = enhancement.index_copy(0, own, value)
        return enhancement

    def inputs(
        self, rho: Tensor, grad_rho: Tensor, tau: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features (n_points, 13) and those that only the router is given, (n_points, 4).

        ρ, τ, weights: (n_points,), ∇ρ: (n_points, 3), atomic units.
        """
        dtype = next(self.parameters()).dtype
        features = grid_features(rho, grad_rho, tau, weights)
        parent = partial_derivatives(self.parent, rho, contracted_gradient(grad_rho), tau)
        columns = torch.stack(parent, 1)
        return compressed(features).to(dtype), compressed(columns).to(dtype)

    def exchange(
        self,
        rho: Tensor,
        grad_rho: Tensor,
        tau: Tensor,
        weights: Tensor,
        coords: Tensor,
        derivatives: bool = True,
    ) -> Exchange:
        """e_x chunk by chunk; ∂e_x/∂(ρ, σ, τ) of each point by autodiff, with every input's terms.

        ρ, ∇ρ, τ: (n_points,), (n_points, 3), (n_points,). σ is varied by the length of ∇ρ. What
        other points say is held: the parent's partial derivatives are local, too.
        """
        place = coords.to(next(self.parameters()).dtype)
        exc, vrho, vsigma, vtau = (torch.zeros_like(rho) for _ in range(4))
        out = Exchange(exc, vrho, vsigma, vtau, torch.zeros_like(rho, dtype=torch.long))
        for part in torch.arange(len(rho)).split(self.chunk):
            n, g, t = (leaf(x[part]) for x in (rho, grad_rho, tau))
            with torch.set_grad_enabled(derivatives):
                features, partial = self.inputs(n, g, t, weights[part])
                with torch.no_grad():
                    chosen = self.route(features, partial, place[part]).argmax(1)
                e = self(features, place[part], chosen, local=True).double() * lda_exchange(n)
            out.exc[part], out.chosen[part] = e.detach(), chosen
            if derivatives:
                inputs = n, g, t  # of no points, nothing depends on them
                d_n, d_g, d_t = torch.autograd.grad(e.sum(), inputs, materialize_grads=True)
                sigma = contracted_gradient(g.detach()).clamp_min(1e-30)
                out.vrho[part], out.vtau[part] = d_n, d_t
                out.vsigma[part] = torch.linalg.vecdot(g.detach(), d_g) / (2 * sigma)
        return out


def compressed(x: Tensor) -> Tensor:
    """arsinh(x / scale) / 5, of order one from the core to the tail."""
    return torch.asinh(x / SCALE) / 5


def grid_features(rho: Tensor, grad_rho: Tensor, tau: Tensor, weights: Tensor) -> Tensor:
    """The 13 inputs: ρ, ∇ρ, τ, τ_unif, τ_W, ε_x^LDA, z, α, s, σ, w; (n_points, 13)."""
    sigma = contracted_gradient(grad_rho)
    tau_w, tau_u = tau_weizsaecker(rho, sigma), tau_uniform(rho)
    s = (reduced_gradient_squared(rho, sigma) + 1e-12).sqrt()  # √ has no slope at 0
    lda, alpha = lda_exchange(rho) / rho, iso_orbital_indicator(rho, sigma, tau)
    z = tau_w / tau.clamp_min(RHO_TINY)
    columns = [rho, *grad_rho.unbind(1), tau, tau_u, tau_w, lda, z, alpha, s, sigma, weights]
    return torch.stack(columns, 1)


def angular_positions(coords: Tensor) -> Tensor:
    """ln(1 + r) and the real spherical harmonics l ≤ 3 of the direction, (n_points, 17)."""
    r = coords.norm(dim=1)
    unit = (coords / (r[:, None] + 1e-12)).T
    x, y, z = unit
    cubic = torch.stack(
        [
            math.sqrt(5 / 8) * y * (3 * x * x - y * y),
            math.sqrt(15) * x * y * z,
            math.sqrt(3 / 8) * y * (5 * z * z - 1),
            z * (5 * z * z - 3) / 2,
            math.sqrt(3 / 8) * x * (5 * z * z - 1),
            math.sqrt(15) / 2 * z * (x * x - y * y),
            math.sqrt(5 / 8) * x * (x * x - 3 * y * y),
        ]
    )
    return torch.cat([torch.log1p(r)[None], solid_harmonics(unit, 2), cubic]).T
