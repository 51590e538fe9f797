"""Attention of each grid point to the density around it, with a width of its own.

Head h averages the density around r with the Gaussian kernel

    ρ̄_h(r) = ∫ (b/π)^{3/2} exp(−b |r − r'|²) ρ(r') d³r',   b = c_h k_F²(1 + s²),

whose width the point's own density sets: 1/√b ~ 1/k_F where it varies slowly and ~ ρ/|∇ρ| in tails
and at nuclei, so that the averages scale with the density. A sum over all pairs of grid points is
not needed. A Gaussian of exponent a averaged with one of exponent b is

    exp(−a d²) → (b/(a + b))^{3/2} exp(−ab/(a + b) d²),

times (b/(a + b))^l before a solid harmonic. So ρ is written in the Gaussians Φ of the tokens, and
each point sums these, widened, over the tokens in reach (`taufree.model.tokens.TokenMap.average`).

**The density in Gaussians.** Points share their density out among the tokens, as softmax attention
would: p_A(r) = g(|r − R_A|)/G(r), G(r) = Σ_B g(|r − R_B|) + ε. Each share p_A ρ is fitted by its
own token's Gaussians with weights 1/g: then Φ_Aᵀ is applied to w ρ / G, the same numbers for all
tokens, and the normal equations have the same small matrix for every token and system, one for
each l (decision 0019).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taufree.model import kernels
from taufree.model.config import ModelConfig
from taufree.model.tokens import TokenMap, set_threads

HEADS = (0.15, 0.5)
"""c_h: one head sees farther than 1/k_F, one nearer."""
N_SEEN = 3 * len(HEADS)
"""Numbers that an expert sees of the averages."""
SHARES = (0.01, 0.04, 0.15, 0.4, 0.6, 0.5)
"""g = C(d) Σ_n SHARES[n] exp(−a_n d²): about as slow as exp(−2d), smooth at the nucleus. A model
with fewer Gaussians leaves out the sharpest."""
FLOOR = 1e-6
"""ε: where all g are smaller, no token has a share."""
RIDGE = 1e-3
"""Added to the diagonal of the normal equations, in units of it: coefficients stay moderate."""
SOFT = 0.1
"""Of ρ̄/ρ: its logarithm is that of ½(ρ̄/ρ + √((ρ̄/ρ)² + SOFT²)), up to a constant that makes 1 its
zero. A fit may be negative in places."""


def normalizer(token_map: TokenMap) -> Tensor:
    """G at every point, (n_points,)."""
    z = shares(token_map.config).to(token_map.points).expand(token_map.n_tokens, -1)
    return token_map.to_points(z[..., None])[:, 0] + FLOOR


def shares(config: ModelConfig) -> Tensor:
    """g in the features Φ of one token, (n_features,), float64."""
    known = torch.tensor(SHARES[: config.n_radial[0]], dtype=torch.float64)
    return torch.nn.functional.pad(known, (0, config.n_features - len(known)))


def fit(c: Tensor, config: ModelConfig) -> Tensor:
    """Coefficients q of the density in Gaussians from c = Φᵀ(w ρ / G).

    Shapes: (n_tokens, n_features, 1) -> (n_tokens, n_features), float64.
    """
    parts, start = [], 0
    c = c[..., 0].double()
    for l, inverse in enumerate(_inverses(config)):
        stop = start + len(inverse) * (2 * l + 1)
        part = c[:, start:stop].unflatten(1, (len(inverse), 2 * l + 1))
        parts.append((torch.tensor(inverse, device=c.device) @ part).flatten(1))
        start = stop
    return torch.cat(parts, 1)


@cache
def _inverses(config: ModelConfig) -> list[NDArray[np.float64]]:
    """Inverse of ∫ Φ_n Φ_n' / g for each l, with a ridge, (n_radial[l], n_radial[l])."""
    x, weight = np.polynomial.legendre.leggauss(400)
    x, weight = (x + 1) / 2, weight / 2
    d = config.cutoff * x**3
    weight = weight * 3 * config.cutoff * x**2 * 4 * np.pi * d**2
    exponents = config.min_exponent * 2.0 ** np.arange(config.n_radial[0])[:, None]
    gauss = (1 - d**2 / config.cutoff**2) ** 3 * np.exp(-exponents * d**2)
    g = np.array(SHARES[: len(gauss)]) @ gauss[: len(SHARES)] + FLOOR
    found = []
    for l, n in enumerate(config.n_radial):
        phi = gauss[:n] * exponents[:n] ** (l / 2) * d**l
        matrix = (phi * (weight / g)) @ phi.T / (2 * l + 1)
        size = matrix.diagonal() ** -0.5
        matrix = matrix * size * size[:, None] + RIDGE * np.eye(n)
        found.append(size[:, None] * np.linalg.inv(matrix) * size)
    return found


def widths(rho: Tensor, s: Tensor) -> Tensor:
    """b of every head, bohr⁻²: (n_points,), (n_points, 3) -> (n_points, n_heads)."""
    k_f_squared = (3 * math.pi**2 * rho) ** (2 / 3)
    return (k_f_squared * (1 + (s * s).sum(1)))[:, None] * rho.new_tensor(HEADS)


def see_averages(average: Tensor, rho: Tensor, s: Tensor, b: Tensor) -> Tensor:
    """What an expert sees of them, invariant under rotation: (n_points, `N_SEEN`).

    Of each head ln(ρ̄/ρ), and of the vector D = ∇ρ̄ / (2√b ρ̄), damped as D/√(1 + |D|²): its part
    along u = s/√(1 + s²) and its square. D is √b times the mean of r' − r under the kernel.

    Parameters
    ----------
    average : Tensor, (n_points, 4 n_heads)
        ρ̄ and ∇ρ̄ of each head, see `TokenMap.average`.
    rho, s, b : Tensor, (n_points,), (n_points, 3), (n_points, n_heads)
    """
    u = s * torch.rsqrt(1 + (s * s).sum(1, keepdim=True))
    if rho.device.type != "cpu":
        return averages_plainly(average, rho, u, b)
    return _SeeAverages.apply(average, rho, u, b)


def averages_plainly(average: Tensor, rho: Tensor, u: Tensor, b: Tensor) -> Tensor:
    """The reference form of `see_averages`."""
    mean, slope = average.unflatten(1, (-1, 4)).split((1, 3), 2)
    log_ratio = torch.asinh(mean[..., 0] / (SOFT * rho[:, None])) - math.asinh(1 / SOFT)
    dipole = slope / (2 * b.sqrt() * rho[:, None] * log_ratio.exp())[..., None]
    square = (dipole * dipole).sum(2)
    along = (dipole * u[:, None]).sum(2) * torch.rsqrt(1 + square)
    return torch.cat([log_ratio, along, square / (1 + square)], 1)


class _SeeAverages(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        set_threads()
        ctx.save_for_backward(*inputs)
        arrays = (x.detach().contiguous().numpy() for x in inputs)
        return torch.from_numpy(kernels.see_averages(*arrays, SOFT))  # type: ignore[call-arg]

    @staticmethod
    def backward(ctx: Any, d_seen: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more
            # b and u come from ρ: partial derivatives need inputs that do not
            inputs = [x.view_as(x) for x in inputs]
            wanted = [x for x in inputs if x.requires_grad]
            slopes = torch.autograd.grad(
                averages_plainly(*inputs), wanted, d_seen, create_graph=True
            )
            found = iter(slopes)
            return tuple(next(found) if x.requires_grad else None for x in inputs)
        set_threads()
        arrays = (x.detach().contiguous().numpy() for x in inputs)
        d_out = d_seen.detach().contiguous().numpy()
        slopes = kernels.see_averages_backward(*arrays, SOFT, d_out)  # type: ignore[call-arg]
        return tuple(map(torch.from_numpy, slopes))
