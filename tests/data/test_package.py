"""A packed data set comes back as it was, but for the rounding of its orbitals."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from rich.console import Console

from taufree.data import build as building
from taufree.data.generate import calculate
from taufree.data.package import PACKAGE, pack, unpack
from taufree.data.store import digest, load_record, write_manifest, write_record
from taufree.data.systems import System, registry
from taufree.errors import UserError

FLOAT32 = 2e-6  # relative rounding of a density from orbitals in float32
LEVELS = (0,)


@pytest.fixture
def systems(monkeypatch: pytest.MonkeyPatch) -> list[System]:
    monkeypatch.setattr(building, "default_levels", lambda system: LEVELS)
    return [registry()[name] for name in ("H", "LiH")]


def test_round_trip(tmp_path: Path, systems: list[System]) -> None:
    data, copy, package = tmp_path / "data", tmp_path / "copy", tmp_path / "package.h5"
    data.mkdir()
    entries = [write_record(data, calculate(s, LEVELS), digest(s, LEVELS)) for s in systems]
    write_manifest(data, {entry.name: entry for entry in entries})
    size = pack(data, package)
    assert size["systems"] == 2
    assert size["bytes"] < sum((data / e.file).stat().st_size for e in entries) / 10
    restored = unpack(package, copy, workers=1, console=Console(file=io.StringIO()))
    for entry in entries:
        assert restored[entry.name].status == "done"
        assert replace(restored[entry.name], sha256="") == replace(entry, sha256="")
        pairs = zip(*(load_record(folder / entry.file) for folder in (data, copy)), strict=True)
        for before, after in pairs:
            assert (before.density_kind, before.e_tot) == (after.density_kind, after.e_tot)
            assert after.e_x.item() == pytest.approx(before.e_x.item(), rel=FLOAT32)
            if len(before.tau[0]) == len(after.tau[0]):  # points at the threshold may change sides
                scale = float(before.tau.max())
                np.testing.assert_allclose(after.tau, before.tau, atol=FLOAT32 * scale, rtol=1e-3)


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"no HDF5")
    with pytest.raises(UserError, match="not a readable package"):
        unpack(tmp_path / "p", tmp_path / "data")
    with h5py.File(tmp_path / "old", "w") as file:
        file.attrs["package"] = PACKAGE
        file.create_group("g2_H2.h5").attrs["name"] = "a system of old"
    with pytest.raises(UserError, match="another version"):
        unpack(tmp_path / "old", tmp_path / "data")
    with pytest.raises(UserError, match="data build"):
        pack(tmp_path, tmp_path / "q")
