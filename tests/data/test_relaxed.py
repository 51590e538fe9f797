"""Densities on which a deorbitalized functional is self-consistent, beside the parent's."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np
import pytest
from rich.console import Console

import taufree
from taufree.data.generate import calculate, mean_field
from taufree.data.relaxed import ENERGY_TOLERANCE, kind_of, relax
from taufree.data.store import digest, load_record, read_manifest, write_manifest, write_record
from taufree.data.systems import System, registry
from taufree.errors import UserError

LEVELS = (0, 1)
QUIET = Console(file=io.StringIO())


@pytest.fixture(scope="module")
def systems() -> list[System]:
    return [registry()[name] for name in ("Li@def2-svp", "H2O@def2-svp")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, systems: list[System]) -> Path:
    data = tmp_path_factory.mktemp("data")
    entries = [write_record(data, calculate(s, LEVELS), digest(s, LEVELS)) for s in systems]
    write_manifest(data, {entry.name: entry for entry in entries})
    relax(data, "ms2", workers=1, console=QUIET)
    return data


def test_the_functional_is_stationary_there(folder: Path, systems: list[System]) -> None:
    kind = kind_of(taufree.load_model("ms2"))
    for system in systems:
        with h5py.File(folder / read_manifest(folder)[system.name].file) as file:
            orbitals = file[f"orbitals/{kind}"][()]
        mf = taufree.deorbitalize(mean_field(system))
        mf.grids.level = LEVELS[0]
        dm = orbitals @ np.swapaxes(orbitals, -1, -2)
        energy = mf.energy_tot(dm)
        assert mf.kernel(dm) == pytest.approx(energy, abs=2 * ENERGY_TOLERANCE)


def test_it_is_another_density_on_the_same_points(folder: Path, systems: list[System]) -> None:
    kind = kind_of(taufree.load_model("ms2"))
    for system in systems:
        records = load_record(folder / read_manifest(folder)[system.name].file)
        by_kind = {(r.density_kind, r.grid_level): r for r in records}
        parent, own = (by_kind[k, LEVELS[0]] for k in ("converged", kind))
        assert (kind, LEVELS[1]) not in by_kind
        assert (own.density.coords == parent.density.coords).all()
        moved = (own.density.rho - parent.density.rho).abs() @ own.density.weights
        assert 1e-5 < moved.sum() < 0.1 * system.n_electrons
        electrons = (own.density.rho @ own.density.weights).sum()
        assert electrons == pytest.approx(system.n_electrons, rel=1e-3)


def test_a_second_call_changes_nothing(folder: Path) -> None:
    before = (folder / "manifest.json").read_bytes()
    relax(folder, "ms2", workers=1, console=QUIET)
    assert (folder / "manifest.json").read_bytes() == before


def test_without_molecules_there_is_nothing_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data build"):
        relax(tmp_path, "ms2")
