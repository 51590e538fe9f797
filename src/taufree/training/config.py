"""A training run in one tracked TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from taufree.errors import UserError
from taufree.model.config import ModelConfig

Config = TypeVar("Config", bound=BaseModel)


class TrainingConfig(BaseModel):
    """Everything that a run depends on, beside the data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path
    """Folder made by ``taufree data build``; relative to the working directory."""
    out: Path
    """Folder of checkpoints, log, learning curve and the finished model."""
    name: str = "ms2"
    start: Path | None = None
    """Weights to start from, or the name of a bundled model: one of the same sizes, also of another
    parent (α̃ is the same quantity for all); by default random ones."""
    seed: int = Field(0, ge=0)
    levels: tuple[int, ...] = Field((1, 2), min_length=1)
    """Grid levels of the training densities."""
    steps: int = Field(20_000, ge=1)
    densities_per_system: int = Field(10, ge=1)
    """Most densities of a system on its coarsest grid that are learned: the converged one and
    others chosen at random, once. What is left out takes no memory."""
    densities_per_step: int = Field(8, ge=1)
    """Systems a step; of each, the converged density and another one where there are any."""
    points_per_density: int = Field(1_000, ge=2, multiple_of=2)
    learning_rate: float = Field(2e-2, gt=0)
    warmup_steps: int = Field(200, ge=1)
    max_gradient: float = Field(0.1, gt=0)
    """Norm that the gradient is clipped to: no single batch may rule Muon's momentum."""
    shares: dict[str, float] = {}
    """Share of the draws that goes to each kind of system; by default each density's is equal.
    With a share for ``scaled``, uniformly scaled densities of G2 molecules join."""
    energy_weight: float = Field(1.0, ge=0)
    """Weight of the loss on ΔE_x beside that on ∫|Δe_x|."""
    response_weight: float = Field(0.0, ge=0)
    """Weight of the loss on the energy's change between two densities of a system."""
    derivative_weight: float = Field(0.0, ge=0)
    """Weight of the loss on the parent's partial derivatives."""
    relaxation_weight: float = Field(0.0, ge=0)
    """Weight of the loss on E_relax of whole molecules, see `taufree.training.relaxation`."""
    molecules_per_step: int = Field(1, ge=1)
    """Of these molecules; they are evaluated together, which a GPU needs to be kept busy."""
    relaxation_atoms: int = Field(5, ge=1)
    """Most atoms of these molecules: a step costs as much as their whole grid."""
    slope_weight: float = Field(0.0, ge=0)
    """Weight of the loss on slopes of energy-volume curves, see `taufree.training.volumes`. With it
    every second step has a crystal at two volumes in place of whole molecules."""
    balance_weight: float = Field(3e-3, ge=0)
    """Weight of the loss that keeps every expert in use."""
    validate_every: int = Field(1_000, ge=1)
    checkpoint_every: int = Field(500, ge=1)
    model: ModelConfig = ModelConfig()

    @property
    def kinds(self) -> list[str] | None:
        """Kinds of systems to train on, those with a share; None: all."""
        return [kind for kind, share in self.shares.items() if share] or None


def read_config(path: Path, kind: type[Config]) -> Config:
    """Read a TOML file as a ``kind`` of settings.

    Raises
    ------
    UserError
        If it cannot be read, or names a setting that does not exist or has a wrong value.
    """
    try:
        return kind.model_validate(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not TOML: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}.") from error
