"""The architecture in one typed object; it travels with the weights."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_ARGUMENT = 9.0
"""Largest a₀d_c²: the kernels' exponential series errs by 5e-12 of e⁻⁹ there."""


class ModelConfig(BaseModel):
    """Sizes of the network. Lengths in bohr, exponents in bohr⁻²."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parent: Literal["ms2", "r2scan"] = "ms2"
    min_exponent: float = Field(0.12, gt=0)
    """Exponent of the broadest Gaussian; each further one is twice as sharp."""
    n_radial: tuple[int, int, int] = (9, 4, 3)
    """Number of Gaussians for l = 0, 1, 2, counted from the broadest; none has more than l = 0."""
    cutoff: float = Field(6.5, gt=0)
    """Beyond this distance a grid point and a token do not see each other."""
    n_mix: int = Field(8, ge=1)
    """Equivariant channels of a token for each l ≥ 1."""
    width: int = Field(64, ge=1)
    """Width of the token encoder."""
    n_layers: int = Field(2, ge=0)
    n_heads: int = Field(4, ge=1)
    n_read: int = Field(24, ge=0)
    """Scalars that a grid point reads back from the tokens."""
    n_directed: int = Field(8, ge=0)
    """Tensors of each l ≥ 1 that it reads, to be seen along its ∇ρ."""
    n_experts: int = Field(5, ge=1)
    expert_width: int = Field(48, ge=1)
    expert_depth: int = Field(2, ge=1)

    @property
    def n_features(self) -> int:
        """Features Φ_{n,lm} of one pair of grid point and token."""
        return sum(n * (2 * l + 1) for l, n in enumerate(self.n_radial))

    @property
    def n_tensor_features(self) -> int:
        """Radial functions of l = 1 and 2."""
        return sum(self.n_radial[1:])

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if not self.n_radial[0] >= max(self.n_radial[1:]) or min(self.n_radial) < 1:
            raise ValueError("n_radial needs at least 1 Gaussian of each l, most for l = 0")
        if self.width % self.n_heads:
            raise ValueError("width must be a multiple of n_heads")
        if self.min_exponent * self.cutoff**2 > MAX_ARGUMENT:
            raise ValueError(f"min_exponent · cutoff² may be at most {MAX_ARGUMENT}")
        return self
