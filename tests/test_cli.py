"""The command line: one line and a non-zero exit for bad input, JSON and a table otherwise."""

import errno
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import taufree
from taufree.cli import app
from taufree.console import write_json
from taufree.data import build
from taufree.data.store import Entry
from taufree.errors import DomainWarning, WeightsError
from taufree.hosts import single_point
from taufree.physics.parents import PARENTS
from taufree.training import loop

EXAMPLES = Path(__file__).parents[1] / "examples"
WATER = str(EXAMPLES / "water.xyz")
QUICK = ["--basis", "sto-3g", "--grid-level", "0"]
KEYS = {"energy_hartree", "converged", "cycles", "model", "potential", "n_atoms", "wall_s"}


@pytest.fixture
def taufree_command(tmp_path, monkeypatch):
    """Run the command in an empty folder, with PBE in place of the network."""

    def deorbitalize(mf, model, potential):
        if model == "corrupted":
            raise WeightsError("corrupted: checksum\nmismatch, install taufree again.")
        mf.xc = "PBE"
        return mf

    functional = SimpleNamespace(parent=PARENTS["ms2"])
    monkeypatch.setattr(taufree, "deorbitalize", deorbitalize, raising=False)
    monkeypatch.setattr(taufree, "load_model", lambda name: functional, raising=False)
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    return lambda *args: runner.invoke(app, [str(a) for a in args], catch_exceptions=False)


def test_help_imports_nothing_heavy():
    probe = "import sys, taufree.cli; print({'torch', 'pyscf', 'ase', 'dask'} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "set()"


def test_run_prints_a_table_and_writes_json(taufree_command):
    done = taufree_command("run", WATER, *QUICK, "--parent", "--json", "water.json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(Path("water.json").read_text())
    assert set(result) == KEYS | {"parent"} and set(result["parent"]) == KEYS
    for value in (result, result["parent"]):
        assert f"{value['energy_hartree']:.6f}" in done.stdout
    assert "mHa" in done.stdout and "kcal/mol per atom" in done.stdout
    assert os.listdir() == ["water.json"]


def test_run_charge_and_spin_reach_the_calculation(taufree_command):
    arguments = ["run", WATER, *QUICK, "--charge", 1, "--spin", 1, "--no-density-fit"]
    done = taufree_command(*arguments, "--json", "cation.json")
    assert done.exit_code == 0, done.stderr
    cation = json.loads(Path("cation.json").read_text())["energy_hartree"]
    neutral_done = taufree_command("run", WATER, *QUICK, "--json", "neutral.json")
    assert neutral_done.exit_code == 0, neutral_done.stderr
    assert cation > json.loads(Path("neutral.json").read_text())["energy_hartree"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.xyz"], "none.xyz is not a file"),
        ([EXAMPLES.parent / "LICENSE"], "cannot be read as a structure"),
        ([EXAMPLES / "silicon.cif"], "needs a mesh of k-points: add --kpts 4 4 4"),
        ([EXAMPLES / "silicon.cif", "--kpts", 1, 1, 1, "--spin", 1], "--spin must be even"),
        ([WATER, "--kpts", 2, 2, 2], "--kpts and --smearing are for crystals"),
        ([EXAMPLES / "no2_radical.xyz"], "--spin must be an odd number"),
        ([WATER, "--basis", "[nonsense]"], "no basis '[nonsense]' for H"),
        ([WATER, "--charge", 11], "leaves no electrons"),
        ([WATER, "--model", "corrupted"], "checksum mismatch"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(taufree_command, arguments, says):
    failed = taufree_command("run", *arguments, "--json", "result.json")
    assert failed.exit_code == 1
    assert failed.stdout == ""
    assert len(failed.stderr.splitlines()) == 1 and says in failed.stderr
    assert os.listdir() == []


@pytest.mark.parametrize("target", ["missing/result.json", ".", "/dev/null"])
def test_json_that_cannot_be_written_is_refused_before_the_calculation(taufree_command, target):
    failed = taufree_command("run", "none.xyz", "--json", target)
    assert failed.exit_code == 1
    assert len(failed.stderr.splitlines()) == 1 and f"--json {target}" in failed.stderr


def test_unconverged_run_fails_but_keeps_its_json(taufree_command, monkeypatch):
    def stop_early(atoms, settings, plain=single_point.mean_field):
        mf = plain(atoms, settings)
        mf.max_cycle = 2
        return mf

    monkeypatch.setattr(single_point, "mean_field", stop_early)
    failed = taufree_command("run", WATER, *QUICK, "--json", "water.json")
    assert failed.exit_code == 1
    assert "did not converge in 2 cycles" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert json.loads(Path("water.json").read_text())["converged"] is False


@pytest.mark.filterwarnings("default::taufree.errors.DomainWarning")
def test_a_run_beyond_the_training_domain_says_so_in_one_line(taufree_command, monkeypatch):
    def deorbitalize(mf, model, potential):
        warnings.warn("ms2 was not trained on H", DomainWarning, stacklevel=2)
        mf.xc = "PBE"
        return mf

    monkeypatch.setattr(taufree, "deorbitalize", deorbitalize)
    done = taufree_command("run", WATER, *QUICK)
    assert done.exit_code == 0
    assert done.stderr.splitlines() == ["taufree: warning: ms2 was not trained on H"]


def test_ctrl_c_says_how_to_go_on(taufree_command, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(single_point, "single_point", interrupted)
    stopped = taufree_command("run", WATER, "--json", "water.json")
    assert stopped.exit_code == 130
    assert "interrupted" in stopped.stderr and len(stopped.stderr.splitlines()) == 1
    assert os.listdir() == []


def test_full_disk_leaves_the_old_json_and_nothing_half_written(taufree_command, monkeypatch):
    Path("info.json").write_text("{}")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    failed = taufree_command("info", "--json", "info.json")
    assert failed.exit_code == 1
    assert "the disk is full" in failed.stderr and len(failed.stderr.splitlines()) == 1
    assert Path("info.json").read_text() == "{}" and os.listdir() == ["info.json"]


def test_json_takes_numpy_and_has_no_nan(tmp_path):
    write_json(tmp_path / "x.json", {"a": np.float64("nan"), "b": np.arange(2), "c": Path("x")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [0, 1], "c": "x"}


def test_info(taufree_command):
    done = taufree_command("info", "--json", "info.json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(Path("info.json").read_text())
    assert result["threads"]["torch"] >= 1 and result["device"]
    assert result["versions"]["taufree"] in done.stdout


def test_data_build_counts_what_is_finished_and_names_what_failed(taufree_command, monkeypatch):
    def stub(out, systems, levels, **options):
        assert [s.name for s in systems] == ["H2", "O2"] and levels == [1]
        done = Entry("H2", "H2", "g2", "", "done", file="g2_H2.h5", sha256="00")
        return {"H2": done, "O2": Entry("O2", "O2", "g2", "", "failed", "it was stubborn")}

    monkeypatch.setattr(build, "build", stub)
    only = ["--name", "H2", "--name", "O2", "--grid-level", 1]
    done = taufree_command("data", "build", "set", *only, "--json", "set.json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(Path("set.json").read_text())
    assert result["done"] == 1 and result["failed"] == {"O2": "it was stubborn"}
    assert result["kinds"] == {"g2": {"train": 1, "validation": 0, "test": 0}}
    assert "1 parent densities" in done.stdout and "failed: O2" in done.stdout


def test_data_build_refuses_unknown_systems_in_one_line(taufree_command):
    failed = taufree_command("data", "build", "set", "--name", "H3O9")
    assert failed.exit_code == 1 and len(failed.stderr.splitlines()) == 1
    assert "unknown system 'H3O9'" in failed.stderr and os.listdir() == []


def test_interrupted_data_build_says_that_it_goes_on(taufree_command, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "build", interrupted)
    stopped = taufree_command("data", "build", "set")
    assert stopped.exit_code == 130 and "the same command goes on" in stopped.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file"),
        ("data = ", "is not TOML"),
        ("out = 'run'", "data: Field required"),
        ("data = 'none'\nout = 'run'\nstepps = 1", "stepps"),
    ],
)
def test_train_refuses_a_bad_config_in_one_line(taufree_command, text, says):
    if text:
        Path("config.toml").write_text(text)
    failed = taufree_command("train", "config.toml")
    assert failed.exit_code == 1
    assert len(failed.stderr.splitlines()) == 1 and says in failed.stderr
    assert not Path("run").exists()


def test_train_prints_what_came_out(taufree_command, monkeypatch):
    result = {"steps": 5, "validation": {"l1_mha": 25.123456}}
    monkeypatch.setattr(loop, "train", lambda config, resume: result | {"resumed": resume})
    done = taufree_command("train", "config.toml", "--no-resume", "--json", "run.json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(Path("run.json").read_text()) == result | {"resumed": False}
    assert "validation l1 mha" in done.stdout and "25.123" in done.stdout


@pytest.mark.parametrize("command", [("run", WATER), ("evaluate", "density"), ("evaluate", "scf")])
def test_unknown_model_is_refused_in_one_line(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    arguments = [*command, "--model", "none", "--json", "result.json"]
    failed = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert failed.exit_code == 1 and len(failed.stderr.splitlines()) == 1
    assert "No model 'none'" in failed.stderr and os.listdir() == []
