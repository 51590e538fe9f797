from __future__ import annotations

import fcntl
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import LocalCluster
from rich.console import Console

from taufree.data import build as build_module
from taufree.data.build import build, select
from taufree.data.store import Entry, file_of, is_intact, iter_records, read_manifest
from taufree.data.systems import KINDS, System, registry
from taufree.errors import UserError

Small = Callable[..., System]
BASIS = "sto-3g"  # this is about files, not energies
WAIT_SECONDS = 60


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**options) as cluster:
        yield cluster.scheduler_address


def run(out: Path, systems: list[System], scheduler: str, **options: bool) -> dict[str, Entry]:
    console = Console(file=io.StringIO())
    return build(out, systems, levels=(0,), scheduler=scheduler, console=console, **options)


def stamps(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*.h5")}


def test_failures_are_recorded_and_only_unfinished_work_is_redone(
    tmp_path: Path, small: Small, scheduler: str
) -> None:
    systems = [small(name, BASIS) for name in ("H", "H2", "He")]
    bad = replace(small("Li"), basis="no-such-basis")
    entries = run(tmp_path, [*systems, bad], scheduler)
    assert {name: entry.status for name, entry in entries.items()} == {
        "H": "done", "H2": "done", "He": "done", "Li": "failed"
    }  # fmt: skip
    assert "basis name" in entries["Li"].reason
    assert read_manifest(tmp_path) == entries
    assert {reference.name for reference in iter_records(tmp_path)} == {"H", "H2", "He"}
    first = stamps(tmp_path)

    # nothing to do, not even the failed one: no scheduler is asked
    assert run(tmp_path, [*systems, bad], "tcp://127.0.0.1:1") == entries
    assert stamps(tmp_path) == first

    # a damaged file, a failure to try again, and another basis; the rest stays
    (tmp_path / entries["H2"].file).write_bytes(b"damaged")
    mended = [*systems[:2], replace(systems[2], basis="def2-svp"), replace(bad, basis=BASIS)]
    entries = run(tmp_path, mended, scheduler, retry_failed=True)
    assert all(is_intact(tmp_path, entry) for entry in entries.values())
    again = stamps(tmp_path)
    assert {name for name, stamp in first.items() if again[name] == stamp} == {"g2_H.h5"}

    # finished, but its line lost with the manifest: taken up, not redone
    (tmp_path / "manifest.json").unlink()
    assert run(tmp_path, mended, "tcp://127.0.0.1:1") == entries


def test_killed_build_goes_on_where_it_stopped(
    tmp_path: Path, small: Small, scheduler: str
) -> None:
    names = ["CH4", "NH3", "H2O", "HF", "LiH", "H2"]
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "from taufree.data.build import build, select\n"
        "if __name__ == '__main__':\n"
        f"    systems = [replace(s, basis={BASIS!r}) for s in select(names={names})]\n"
        "    build(Path(sys.argv[1]), systems, levels=(0,), workers=1)\n"
    )
    out = tmp_path / "data"
    process = subprocess.Popen([sys.executable, script, out], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + WAIT_SECONDS
    while not stamps(out) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # the worker notices that its parent is gone
    finished = stamps(out)
    assert 0 < len(finished) < len(names)
    (out / ".g2_H2.h5.1.tmp").write_bytes(b"half")

    entries = run(out, [small(name, BASIS) for name in names], scheduler)
    assert {name for name, entry in entries.items() if entry.status == "done"} == set(names)
    assert all(is_intact(out, entry) for entry in entries.values())
    assert finished.items() <= stamps(out).items()
    assert not list(out.glob(".*.tmp"))
    assert json.loads((out / "manifest.json").read_text())["systems"][0]["name"] == "CH4"


def test_unwritable_file_ends_the_build_with_one_line(
    tmp_path: Path, small: Small, scheduler: str
) -> None:
    system = small("H2", BASIS)
    (tmp_path / file_of(system)).mkdir()
    with pytest.raises(UserError, match="cannot write"):
        run(tmp_path, [system], scheduler)
    assert read_manifest(tmp_path) == {}


def test_second_build_in_the_same_folder_is_refused(tmp_path: Path, small: Small) -> None:
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another build"):
            build(tmp_path, [small("H2", BASIS)])


def test_missing_scheduler_and_folder_are_one_clear_line(
    tmp_path: Path, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "CONNECT_SECONDS", 0.5)
    with pytest.raises(UserError, match="no Dask scheduler"):
        run(tmp_path, [small("H2", BASIS)], "tcp://127.0.0.1:1")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        build(tmp_path / "file", [small("H2", BASIS)])


def test_selection_by_kind_and_name() -> None:
    assert select() == select([], []) == list(registry().values())
    assert {system.kind for system in select(kinds=KINDS[:2])} == set(KINDS[:2])
    assert [system.name for system in select(names=("H2O",))] == ["H2O"]
    assert len(select(kinds=("atoms",), names=("H2O",))) == len(select(kinds=("atoms",))) + 1
    for wrong in ({"kinds": ("g3",)}, {"names": ("H3O",)}):
        with pytest.raises(UserError, match="unknown"):
            select(**wrong)
