"""What the experts see of a grid point: numbers that a rotation leaves as they are.

Scalars read from the tokens enter as they are; a tensor T_lm as Σ_m T_lm S_lm(u) along the vector
u = s n̂ / √(1 + s²) of the density's gradient, and as its square Σ_m T_lm². Scalars, vectors and
l = 2 tensors are each divided by √(1 + ⟨T²⟩ / LARGE²), ⟨⟩ the mean over channels and m, so that
what was never learned stays bounded.
On a CPU one compiled pass over memory goes forward and one backward; the PyTorch form is the
reference, runs anywhere and can be differentiated again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from taufree.model.kernels import sight as kernels
from taufree.model.kernels.sight import LARGE
from taufree.model.tokens import set_threads, solid_harmonics, split_by_l


def see(local: Tensor, f: Tensor, n_directed: int) -> Tensor:
    """Inputs of the experts, invariant under rotation.

    Parameters
    ----------
    local : Tensor, (n_points, 4)
        ln(ρ + 1e-6)/4 and u, see `taufree.model.network.local_inputs`.
    f : Tensor, (n_points, n_scalars + 8 n_directed)
        What points read, see `taufree.model.tokens.TokenMap.to_points`.

    Returns
    -------
    (n_points, 2 + n_scalars + 4 n_directed): ``local[0]``, |u|², scalars, and of l = 1, then 2, the
    channels along u and their squares.
    """
    if f.device.type != "cpu":
        return see_plainly(local, f, n_directed)
    return _See.apply(local, f, n_directed)


def see_plainly(local: Tensor, f: Tensor, n_directed: int) -> Tensor:
    """The reference form of `see`."""
    scalars, *tensors = split_by_l(f, n_directed, 1)
    log_rho, u = local[:, :1], local[:, 1:]
    harmonics = solid_harmonics(u.mT, 2).mT[..., None]
    seen = [log_rho, (u * u).sum(1, keepdim=True), scalars * _damping(scalars, 1)]
    for t, s in zip(tensors, (harmonics[:, 1:4], harmonics[:, 4:9]), strict=True):
        t = t * _damping(t, (1, 2))
        seen += [(t * s).sum(1), (t * t).sum(1)]
    return torch.cat(seen, 1)


def _damping(t: Tensor, dim: int | tuple[int, int]) -> Tensor:
    return torch.rsqrt(1 + (t * t).mean(dim, keepdim=True).nan_to_num() / LARGE**2)


class _See(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, f: Tensor, n_directed: int) -> Tensor:
        set_threads()
        ctx.save_for_backward(local, f)
        ctx.n_directed = n_directed
        arrays = (x.contiguous().numpy() for x in (local, f))
        return torch.from_numpy(kernels.see(*arrays, n_directed))  # type: ignore[call-arg]

    @staticmethod
    def backward(ctx: Any, d_seen: Tensor) -> tuple[Tensor, Tensor, None]:
        local, f = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more
            seen = see_plainly(local, f, ctx.n_directed)
            d_local, d_f = torch.autograd.grad(seen, (local, f), d_seen, create_graph=True)
        else:
            set_threads()
            arrays = (x.detach().contiguous().numpy() for x in (local, f, d_seen))
            slopes = kernels.see_backward(*arrays, ctx.n_directed)  # type: ignore[call-arg]
            d_local, d_f = map(torch.from_numpy, slopes)
        return d_local, d_f, None
