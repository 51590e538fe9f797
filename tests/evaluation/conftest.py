"""Records of a few systems, and two functionals whose errors are known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from taufree.data.generate import calculate
from taufree.data.store import ReferenceDensity, digest, load_record, write_manifest, write_record
from taufree.data.systems import System, registry
from taufree.functional import Functional
from taufree.model.config import ModelConfig
from taufree.model.network import Network

LEVEL = 1


def build(folder: Path, systems: Iterable[System]) -> Path:
    """A data set as `taufree data build` makes it, at the grid level of the prototype's table."""
    folder.mkdir(exist_ok=True)
    records = {system.name: calculate(system, [LEVEL]) for system in systems}
    entries = {
        name: write_record(folder, record, digest(record.system, [LEVEL]))
        for name, record in records.items()
    }
    write_manifest(folder, entries)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """H2 and He of one orbital (train), LiF and CH of the test split, and their free atoms."""
    names = ("H", "H2", "He", "LiF", "Li", "F", "CH")
    return build(tmp_path_factory.mktemp("set"), [registry()[name] for name in names])


@pytest.fixture(scope="session")
def record(data: Path) -> Callable[[str], ReferenceDensity]:
    """The converged density of a system by its name."""
    return lambda name: next(
        record
        for record in load_record(data / f"{registry()[name].kind}_{name}.h5")
        if record.density_kind == "converged"
    )


@pytest.fixture
def functional() -> Functional:
    """A network nobody trained, in float64."""
    torch.manual_seed(0)
    return Functional(Network(ModelConfig()).double(), name="untrained")


@pytest.fixture
def one_orbital(functional: Functional) -> Functional:
    """α̃ = 0 wherever there is a density: the exact α of every system of one orbital."""
    for expert in functional.network.experts.experts:
        torch.nn.init.zeros_(expert[-1].weight)
        torch.nn.init.constant_(expert[-1].bias, -1e9)
    functional.name = "one orbital"
    return functional


@pytest.fixture(scope="session")
def small() -> Callable[[str], System]:
    """A registered system in a basis for quick self-consistency."""
    return lambda name: replace(registry()[name], basis="def2-svp")
