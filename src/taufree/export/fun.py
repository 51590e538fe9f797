"""TorchScript for the programs that evaluate Skala's functionals.

The protocol (https://github.com/microsoft/skala, version 2) is a module with the methods
``get_exc_density`` and ``get_exc`` of a dictionary of float64 tensors, and JSON beside it that
names the entries it needs.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from taufree.export.dense import DenseExchange
from taufree.export.pt2 import example
from taufree.functional import Functional, hold
from taufree.physics import regtpss
from taufree.physics.descriptors import contracted_gradient
from taufree.physics.parents import Parent

PROTOCOL_VERSION = 2
FEATURES = ("density", "grad", "grid_coords", "grid_weights", "coarse_0_atomic_coords")
"""ρ (2, n_points), ∇ρ (2, 3, n_points), r (n_points, 3), w (n_points,), R (n_centers, 3)."""

Correlation = Callable[[Tensor, Tensor, Tensor], Tensor]
CORRELATIONS: dict[str, Correlation] = {"GGA_C_REGTPSS": regtpss.energy_density}
"""By libxc's names: e_c(ρ, ζ, σ) in PyTorch. Of other parents a file holds exchange only."""


class SpinResolved(nn.Module):
    """E_xc of spin densities: exchange by exact spin scaling, the parent's own correlation."""

    def __init__(self, functional: Functional) -> None:
        super().__init__()
        self.exchange = DenseExchange(functional)
        self.correlation = CORRELATIONS.get(functional.parent.correlation)

    def get_exc_density(self, mol: dict[str, Tensor]) -> Tensor:
        """e_xc, energy per volume, (n_points,); shapes of the entries as in `FEATURES`."""
        rho, grad_rho, weights = mol["density"], mol["grad"].mT, mol["grid_weights"]
        geometry = self.exchange.geometry(mol["grid_coords"], mol["coarse_0_atomic_coords"])
        up, down = (
            self.exchange.energy_density(2 * rho[i], 2 * grad_rho[i], weights, *geometry) / 2
            for i in (0, 1)
        )
        exc = up + down
        if self.correlation:
            total, sigma, held = hold(rho.sum(0), contracted_gradient(grad_rho.sum(0)))
            zeta = (rho[0] - rho[1]) / total
            exc = exc + held * self.correlation(total, zeta, sigma)
        return exc

    def get_exc(self, mol: dict[str, Tensor]) -> Tensor:
        """E_xc = Σ_j w_j e_xc(r_j)."""
        return mol["grid_weights"] @ self.get_exc_density(mol)


def energy(parent: Parent) -> str:
    """What such a file of this parent holds."""
    return "exchange-correlation" if parent.correlation in CORRELATIONS else "exchange"


def fun(functional: Functional, metadata: dict[str, Any]) -> bytes:
    """What `torch.jit.load` and Skala's ``TracedFunctional.load`` read."""
    rho, grad_rho, weights, coords, centers = example()
    values = rho.expand(2, -1), grad_rho.mT.expand(2, -1, -1), coords, weights, centers
    inputs = (dict(zip(FEATURES, values, strict=True)),)
    with warnings.catch_warnings():
        # PyTorch would rather have torch.export; the tracer warns of every Python branch
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", TracerWarning)
        module = torch.jit.trace_module(
            SpinResolved(functional),
            {"get_exc_density": inputs, "get_exc": inputs},
            check_trace=False,
        )
        file = io.BytesIO()
        beside = {
            "metadata": metadata,
            "features": FEATURES,
            "expected_d3_settings": None,
            "protocol_version": PROTOCOL_VERSION,
        }
        extra = {name: json.dumps(value) for name, value in beside.items()}
        torch.jit.save(module, file, _extra_files=extra)
    return file.getvalue()
