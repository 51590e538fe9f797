from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from taufree.data.generate import ParentRecord, calculate
from taufree.data.store import (
    Entry,
    digest,
    entries_of,
    is_intact,
    iter_records,
    load_record,
    manifest_checksum,
    read_entry,
    read_manifest,
    write_manifest,
    write_record,
)
from taufree.data.systems import System
from taufree.errors import UserError

LEVELS = (0, 1)


@pytest.fixture(scope="module")
def record(small: Callable[..., System]) -> ParentRecord:
    return calculate(small("LiH"), LEVELS)


@pytest.fixture
def entry(tmp_path: Path, record: ParentRecord) -> Entry:
    return write_record(tmp_path, record, digest(record.system, LEVELS))


def test_record_survives_the_round_trip(tmp_path: Path, entry: Entry, record: ParentRecord) -> None:
    loaded = {(r.density_kind, r.grid_level): r for r in load_record(tmp_path / entry.file)}
    assert set(loaded) == set(record.densities)
    for key, arrays in record.densities.items():
        reference = loaded[key]
        for name, values in arrays.items():
            tensor = getattr(reference, name, None)
            tensor = getattr(reference.density, name) if tensor is None else tensor
            np.testing.assert_array_equal(tensor.numpy(), values)
        assert reference.density.centers.tolist() == [list(r) for r in record.system.positions]
        assert (reference.name, reference.formula, reference.kind) == ("LiH", "HLi", "g2")
        assert (reference.numbers, reference.n_electrons) == ((3, 1), 4)
        assert reference.e_tot == record.e_tot
        assert float(reference.e_x) == pytest.approx(arrays["exc"][0] @ arrays["weights"])


def test_levels_and_density_kinds_can_be_chosen(tmp_path: Path, entry: Entry) -> None:
    path = tmp_path / entry.file
    assert [r.grid_level for r in load_record(path, levels=(1,))] == [1]
    (first,) = load_record(path, density_kinds=("initial",))
    assert (first.density_kind, first.grid_level) == ("initial", 0)
    assert load_record(path, density_kinds=("cycle99",)) == []


def test_manifest_survives_the_round_trip_and_selects(tmp_path: Path, entry: Entry) -> None:
    failed = Entry("X", "X", "g2", "0", "failed", "no basis")
    entries = {"LiH": entry, "X": failed}
    write_manifest(tmp_path, entries)
    assert read_manifest(tmp_path) == entries
    assert entries_of(tmp_path, "train") == [entry]
    assert entries_of(tmp_path, "test") == []
    converged = {"density_kinds": ("converged",)}
    assert [r.name for r in iter_records(tmp_path, levels=(0,), **converged)] == ["LiH"]
    assert len(list(iter_records(tmp_path, split="train", **converged))) == len(LEVELS)
    assert list(iter_records(tmp_path, split="test")) == []
    assert list(iter_records(tmp_path, names=("H2",))) == []


def test_manifest_checksum_follows_the_finished_files_only(entry: Entry) -> None:
    other = replace(entry, name="A", sha256="0")
    failed = Entry("X", "X", "g2", "0", "failed", "no basis")
    checksum = manifest_checksum({"LiH": entry, "A": other})
    assert checksum == manifest_checksum({"X": failed, "A": other, "LiH": entry})
    assert checksum != manifest_checksum({"LiH": entry, "A": replace(other, sha256="1")})


def test_one_flipped_byte_is_detected(tmp_path: Path, entry: Entry) -> None:
    write_manifest(tmp_path, {entry.name: entry})
    assert is_intact(tmp_path, entry)
    path = tmp_path / entry.file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert not is_intact(tmp_path, entry)
    with pytest.raises(UserError, match="checksum"):
        list(iter_records(tmp_path))


def test_unreadable_files_are_one_clear_line(tmp_path: Path, entry: Entry) -> None:
    path = tmp_path / entry.file
    path.write_bytes(path.read_bytes()[:1000])
    for read in (load_record, read_entry):
        with pytest.raises(UserError, match="HDF5"):
            read(path)
    with pytest.raises(UserError, match="No such file"):
        load_record(tmp_path / "gone.h5")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="not a manifest"):
        read_manifest(tmp_path)


def test_full_disk_keeps_the_old_file_and_leaves_nothing_half_written(
    tmp_path: Path, entry: Entry, record: ParentRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="disk is full"):
        write_record(tmp_path, replace(record, e_tot=0.0), entry.digest)
    assert [path.name for path in tmp_path.iterdir()] == [entry.file]
    assert is_intact(tmp_path, entry)


def test_digest_tells_settings_apart(record: ParentRecord) -> None:
    system = record.system
    variants = [system, replace(system, basis="sto-3g"), replace(system, charge=2)]
    assert len({digest(s, levels) for s in variants for levels in (LEVELS, (1,))}) == 6
