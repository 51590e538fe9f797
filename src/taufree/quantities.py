"""The one record that flows from a host to the functional and back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class GridDensity:
    """Electron density on an integration grid; everything in atomic units.

    ========= ======================= ============ =====================================
    field     shape                   unit         meaning
    ========= ======================= ============ =====================================
    coords    (n_points, 3)           bohr         grid points r
    weights   (n_points,)             bohr³        quadrature weights w
    rho       (n_spin, n_points)      bohr⁻³       ρ (n_spin = 1) or ρ↑, ρ↓ (n_spin = 2)
    grad_rho  (n_spin, n_points, 3)   bohr⁻⁴       ∇ρ of the same
    centers   (n_centers, 3)          bohr         nuclei, where the tokens sit
    lattice   (n_periodic, 3) or None bohr         cell vectors as rows; None: a molecule
    ========= ======================= ============ =====================================
    """

    coords: Tensor
    weights: Tensor
    rho: Tensor
    grad_rho: Tensor
    centers: Tensor
    lattice: Tensor | None = None

    @property
    def n_spin(self) -> int:
        return self.rho.shape[0]

    @property
    def unpolarized(self) -> list[tuple[Tensor, Tensor]]:
        """ρ (n_points,), ∇ρ (n_points, 3) of the densities n_spin·ρσ that spin scaling asks for."""
        scaled = self.n_spin * self.rho, self.n_spin * self.grad_rho
        return list(zip(*scaled, strict=True))

    def integral(self, values: Tensor) -> Tensor:
        """½ Σσ ∫ f[2ρσ], or ∫ f[ρ] of a closed shell; f (n_spin, n_points) at `unpolarized`."""
        return (values @ self.weights).sum() / self.n_spin

    def scaled(self, factor: float) -> GridDensity:
        """ρ_λ(r) = λ³ρ(λr) on the grid and nuclei at r/λ: λ > 1 contracts, N stays."""
        return replace(
            self,
            coords=self.coords / factor,
            weights=self.weights / factor**3,
            rho=self.rho * factor**3,
            grad_rho=self.grad_rho * factor**4,
            centers=self.centers / factor,
            lattice=None if self.lattice is None else self.lattice / factor,
        )

    def to(self, device: torch.device | str) -> GridDensity:
        """The same record with every tensor on ``device``."""
        fields = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **fields)
