"""The exchange of one parent at the density and orbitals of another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from taufree.data.generate import parent_exchange
from taufree.data.store import ReferenceDensity


def with_parent(record: ReferenceDensity, xc: str) -> ReferenceDensity:
    """The same density with e_x and its derivatives of the parent called ``xc``.

    A parent's exchange is a function of (ρ, ∇ρ, τ) at any density with orbitals, so the densities
    of one parent can teach, and test at fixed density, the surrogate of another. ``parent`` of
    what comes back is the new one; ``e_tot``, which would take a calculation of its own, is NaN.

    Raises
    ------
    UserError
        No such parent.
    """
    if record.parent == xc:
        return record
    density = record.density
    rho, grad_rho, tau = (x.numpy() for x in (density.rho, density.grad_rho, record.tau))
    exchange = parent_exchange(rho, grad_rho, tau, xc)
    tensors: dict[str, Any] = {key: torch.from_numpy(x) for key, x in exchange.items()}
    return replace(record, parent=xc, e_tot=float("nan"), **tensors)
