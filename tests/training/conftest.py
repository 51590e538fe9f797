"""A data set of two tiny systems, one for training and one for validation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from taufree.data.generate import calculate
from taufree.data.store import ReferenceDensity, digest, load_record, write_manifest, write_record
from taufree.data.systems import registry
from taufree.training.config import TrainingConfig


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LiH and the lithium atom train, NH validates; grid level 0."""
    path = tmp_path_factory.mktemp("data")
    entries = {}
    for name in ("LiH", "Li", "NH"):
        system = registry()[name]
        entries[name] = write_record(path, calculate(system, (0,)), digest(system, (0,)))
    write_manifest(path, entries)
    return path


@pytest.fixture(scope="session")
def lithium(folder: Path) -> list[ReferenceDensity]:
    return load_record(next(folder.glob("*_Li.h5")))


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> TrainingConfig:
    return TrainingConfig(
        data=folder,
        out=tmp_path / "run",
        levels=(0,),
        steps=6,
        densities_per_step=2,
        points_per_density=50,
        validate_every=3,
        checkpoint_every=2,
        response_weight=0.1,
        derivative_weight=0.1,
        relaxation_weight=1.0,
    )


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
