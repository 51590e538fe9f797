"""Networks that others proposed, at their published sizes and with random weights: for timing.

Written from the papers' descriptions; nothing here is trained, and no energy of it means anything.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from taufree.model.tokens import solid_harmonics
from taufree.physics.descriptors import (
    contracted_gradient,
    lda_exchange,
    reduced_gradient_squared,
    tau_uniform,
    tau_weizsaecker,
)

CHUNK = 4000
"""Grid points that attend to each other in `ExpertTransformers`."""
N_PARTIAL = 4
"""The parent's e_x and its partial derivatives, which only the router is given."""


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

    def forward(self, features: Tensor, coords: Tensor) -> Tensor:
        x = self.norm_in(self.embed(features) + self.place(angular_positions(coords)))
        return self.out(self.norm_out(self.encoder(x[None])[0]))


class ExpertTransformers(nn.Module):
    """A gating transformer sends each grid point to one of four transformers, by hard arg-max.

    A. Chaudhari and A. J. Logsdail, ChemRxiv 2025, doi:10.26434/chemrxiv-2025-mrgzj-v2. Published
    size: experts of width 512, 8 layers, 8 heads, a router of 2 layers and 2 heads, float64, chunks
    of 4,000 points. Its τ input, the output of another network (`LinearAttention`), is given here
    as τ_W + τ_unif at no cost.
    """

    def __init__(self, width: int = 512, n_layers: int = 8, n_heads: int = 8) -> None:
        super().__init__()
        n_features = 13
        self.router = GridTransformer(n_features + N_PARTIAL, 4, width, 2, 2)
        self.experts = nn.ModuleList(
            GridTransformer(n_features, 1, width, n_layers, n_heads) for _ in range(4)
        )
        self.double().eval()

    def forward(self, features: Tensor, coords: Tensor) -> tuple[Tensor, Tensor]:
        """F_x (n_points,) of one chunk, and the expert chosen for each point."""
        with torch.no_grad():
            partial = features[:, :N_PARTIAL]  # stand-ins of the same cost
            chosen = self.router(torch.cat([features, partial], 1), coords).argmax(1)
        parts = [
            (own, expert(features[own], coords[own]).squeeze(1))
            for e, expert in enumerate(self.experts)
            if len(own := (chosen == e).nonzero().squeeze(1))
        ]
        enhancement = features.new_zeros(len(features))
        for own, values in parts:
            enhancement = enhancement.index_copy(0, own, values)
        return enhancement, chosen

    def exchange(
        self, rho: Tensor, grad_rho: Tensor, weights: Tensor, coords: Tensor, potential: bool
    ) -> tuple[Tensor, Tensor]:
        """E_x, and how many points went to each expert; with ∂e_x/∂(inputs) if ``potential``.

        The derivatives are partial ones with respect to the network's inputs, as published.
        """
        inputs = grid_features(rho, grad_rho, weights)
        inputs = (inputs - inputs.mean(0)) / inputs.std(0).clamp_min(1e-12)
        energy, used = rho.new_zeros(()), torch.zeros(4, dtype=torch.long)
        for part in torch.arange(len(rho)).split(CHUNK):
            with torch.set_grad_enabled(potential):
                features = inputs[part].requires_grad_(potential)
                enhancement, chosen = self(features, coords[part])
                e = enhancement * lda_exchange(rho[part])
                if potential:
                    torch.autograd.grad(e.sum(), features)
            energy += (weights[part] * e.detach()).sum()
            used += torch.bincount(chosen, minlength=4)
        return energy, used


def grid_features(rho: Tensor, grad_rho: Tensor, weights: Tensor) -> Tensor:
    """The 13 inputs: ρ, ∇ρ, τ, τ_unif, τ_W, ε_x^LDA, z, α, s, σ, w; (n_points, 13)."""
    sigma = contracted_gradient(grad_rho)
    tau_w, tau_u = tau_weizsaecker(rho, sigma), tau_uniform(rho)
    tau = tau_w + tau_u
    s = reduced_gradient_squared(rho, sigma).sqrt()
    lda, alpha = lda_exchange(rho) / rho, (tau - tau_w) / tau_u
    columns = [rho, *grad_rho.unbind(1), tau, tau_u, tau_w, lda, tau_w / tau, alpha, s, sigma]
    return torch.stack([*columns, weights], 1)


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


class LinearAttention(nn.Module):
    """τ from blocks of linear attention over all grid points, the quadrature weights in its sums.

    The "global density approximation" of M. Medvidović et al., arXiv:2410.16408. At width 128 and
    three blocks it has the published number of parameters, some 650,000.
    """

    def __init__(self, width: int = 128, n_blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 2 * width)
        self.place = FourierPositions(2 * width)
        self.project = nn.Linear(2 * width, width)
        self.blocks = nn.ModuleList(LinearAttentionBlock(width) for _ in range(n_blocks))
        self.norm = nn.LayerNorm(width)
        self.gated = GatedPerceptron(width)
        self.out = nn.Linear(width, 1)
        self.eval()

    def forward(self, rho: Tensor, sigma: Tensor, electrons: Tensor, coords: Tensor) -> Tensor:
        """τ (n_points,) in the network's precision; ``electrons`` are w_j ρ_j."""
        measure = electrons / electrons.sum()
        coords = principal_frame(coords, measure)
        x = torch.log(torch.stack([rho, sigma], 1) + 1e-4)
        x = x - measure @ x
        x = x / (measure @ x.square() + 1e-5).sqrt()
        x = self.project(self.embed(x) * nn.functional.silu(self.place(coords)))
        for block in self.blocks:
            x = block(x, electrons, coords)
        phi = self.out(torch.tanh(self.gated(self.norm(x)))).squeeze(1)
        tau_w = tau_weizsaecker(rho, sigma)
        return tau_w + phi.exp() * (tau_uniform(rho) + 1e-3 * tau_w)


class LinearAttentionBlock(nn.Module):
    """x + Q (Kᵀ W V), then x + gated perceptron; Q and K turn with the position (rotary)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.phase = nn.Linear(3, width // 2, bias=False)
        self.norm = nn.LayerNorm(width)
        self.gated = GatedPerceptron(width)

    def forward(self, x: Tensor, electrons: Tensor, coords: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, 1)
        phase = self.phase(coords)
        q, k = (rotate(unit_norm(a, electrons), phase) for a in (q, k))
        x = x + q @ (k.T @ (electrons[:, None] * v))
        return x + self.gated(self.norm(x))


class GatedPerceptron(nn.Module):
    """Linear(a · silu(b)), hidden width twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into = nn.Linear(width, 4 * width)
        self.out = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.into(x).chunk(2, 1)
        return self.out(a * nn.functional.silu(b))


class FourierPositions(nn.Module):
    """Sines and cosines of random projections of the position, mixed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.phase = nn.Linear(3, width // 2, bias=False)
        self.mix = nn.Linear(width, width)

    def forward(self, coords: Tensor) -> Tensor:
        phase = self.phase(coords)
        return self.mix(torch.cat([phase.cos(), phase.sin()], 1) / phase.shape[1] ** 0.5)


def rotate(x: Tensor, phase: Tensor) -> Tensor:
    """Turn pairs of channels by an angle each: (n, 2k), (n, k) -> (n, 2k)."""
    a, b = x.chunk(2, 1)
    c, s = phase.cos(), phase.sin()
    return torch.cat([a * c - b * s, a * s + b * c], 1)


def unit_norm(x: Tensor, electrons: Tensor) -> Tensor:
    """Channels scaled to ∫ρ x² = 1."""
    return x / (electrons @ x.square() + 1e-5).sqrt()


def principal_frame(coords: Tensor, measure: Tensor) -> Tensor:
    """Positions in the frame of the density's principal axes, in units of its extents."""
    r = coords - measure @ coords
    extents, axes = torch.linalg.eigh((r * measure[:, None]).T @ r)
    return (r @ axes / (extents + 1e-5).sqrt()).detach()


def skala_network() -> Any:
    """Skala 1.1 (arXiv:2506.14665) with random weights; None if ``skala`` is not installed."""
    try:
        model = importlib.import_module("skala.functional.model")
    except ImportError:
        return None
    return model.SkalaFunctional(lmax=3, num_mid_layers=4, num_non_local_layers=3).eval()


def skala_features(arrays: dict[str, Tensor]) -> dict[Any, Tensor]:
    """Named arrays as the package ``skala`` wants them; names that it knows and no others."""
    feature = importlib.import_module("skala.features").Feature
    return {feature(name): array for name, array in arrays.items()}
