"""Slopes of energy-volume curves: the parent's and the surrogate's, by other ways."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from networks import random_functional
from taufree.data.generate import calculate
from taufree.data.store import digest, write_manifest, write_record
from taufree.data.systems import registry
from taufree.training.config import TrainingConfig
from taufree.training.draw import draw_whole
from taufree.training.volumes import Curves, slope_error


@pytest.fixture(scope="module")
def helium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Solid helium at two volumes; grid level 0."""
    path = tmp_path_factory.mktemp("crystals")
    entries = {}
    for name in ("He-hcp", "He-hcp@0.94"):
        system = registry()[name]
        entries[name] = write_record(path, calculate(system, (0,)), digest(system, (0,)))
    write_manifest(path, entries)
    return path


def test_slope_is_that_of_two_energies(helium: Path) -> None:
    functional = random_functional(roughness=1.0)
    (curve,) = Curves(helium, "train", 0, functional.network.config)
    small, large = curve
    assert small.volume == pytest.approx(0.94 * large.volume, rel=1e-6)
    errors = []
    for crystal in curve:
        d = crystal.density
        (fields,) = d.unpolarized
        exc = functional.potential(*fields, d.weights, crystal.geometry).exc
        errors.append((d.weights @ exc).item() - crystal.e_x)
    per_atom = (errors[1] - errors[0]) / 2
    slope = slope_error(functional.network, small, large)
    assert slope.item() == pytest.approx(-per_atom / math.log(0.94), rel=1e-9)
    slope.backward()
    assert any(p.grad is not None and p.grad.any() for p in functional.network.parameters())


def test_crystals_take_turns_with_molecules(helium: Path, config: TrainingConfig) -> None:
    curves = Curves(helium, "train", 0, config.model)
    drawn = [draw_whole(step, None, curves, config) for step in range(4)]
    assert [pair is not None for _, pair in drawn] == [True, False, True, False]
    small, large = drawn[0][1] or pytest.fail("no crystal drawn")
    assert small.volume < large.volume
