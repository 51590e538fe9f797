"""Benchmarks: they run, say what they measured, and measure it rightly; no test of any speed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.geometry import get_distances
from typer.testing import CliRunner

from networks import random_functional, random_network
from taufree.cli import app
from taufree.evaluation.speed import measure, scaling, stages, systems
from taufree.model.storage import save_model

FAST_FORM = 1e-6  # Ha per atom: fast form in float32 against the plain form in float64
SMALL = ["--grid-level", "0", "--basis", "def2-svp", "--repeats", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    save_model(path, random_network(roughness=1.0), {})
    return path


@pytest.fixture
def bench(model: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run a benchmark on H2, or on what its options say, and read the JSON it leaves."""
    hydrogen = tmp_path / "h2.xyz"
    hydrogen.write_text("2\n\nH 0 0 0\nH 0 0 0.74\n")

    def run(command: str, *options: str, molecule: bool = True) -> dict[str, Any]:
        files = ["--json", tmp_path / "out.json", "--plot", tmp_path / "out.svg"]
        arguments = [command, *([hydrogen] if molecule else []), "--model", model, *files, *options]
        done = CliRunner().invoke(app, ["bench", *map(str, arguments)], catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        result: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
        assert result["benchmark"] == command
        assert result["conditions"]["threads"]["pyscf"] >= 1 and result["conditions"]["cpu"]
        assert "threads" in done.stdout and "PySCF" in done.stdout
        assert "</svg>" in (tmp_path / "out.svg").read_text()
        return result

    return run


def test_xc_times_first_and_later_builds_and_their_stages(bench):
    (run,) = bench("xc", *SMALL)["results"]
    assert set(run["builds"]) == {"deorbitalized, first", "deorbitalized", "PBE", "MS2"}
    for build in run["builds"].values():
        assert len(build["times_s"]) == 2
        assert 0 < build["min_s"] <= build["median_s"] <= build["max_s"]
    assert run["ratio_to_parent"]["MS2"] == 1
    assert sum(run["profile_s"].values()) == pytest.approx(
        run["builds"]["deorbitalized"]["median_s"]
    )
    energies = run["exc_hartree"]
    assert len(set(energies.values())) == 3
    assert all(-0.8 < e < -0.5 for e in energies.values())  # H2: E_xc ≈ −0.7 Ha in all of them


def test_crystals_are_timed_like_molecules(bench, monkeypatch):
    helium = bulk("He", "fcc", 4.2), "6-31g"
    monkeypatch.setattr(systems, "CRYSTALS", {"Si": helium})
    options = ["--kpts", "2", "1", "1", "--repeats", "1"]
    (run,) = bench("crystals", *options, molecule=False)["results"]
    assert set(run["builds"]) == {"deorbitalized, first", "deorbitalized", "PBE", "MS2"}
    assert run["n_atoms"] == 1 and run["n_ao"] == 2 and run["kpts"] == [2, 1, 1]
    assert all(e < -0.5 for e in run["exc_hartree"].values())
    assert run["network"]["ratio"] < 10 and run["network"]["neighbours"] >= 1
    assert 0 < run["network"]["n_points"] <= run["n_points"]
    unknown = CliRunner().invoke(app, ["bench", "crystals", "--name", "Xx"])
    assert unknown.exit_code == 1 and "choose among Si, MgO and Al" in unknown.stderr


def test_scf_converges_and_counts(bench):
    (run,) = bench("scf", *SMALL)["results"]
    for one in run["functionals"].values():
        assert one["converged"] and one["cycles"] > 0
        assert one["xc_builds"] >= one["cycles"]
        assert 0 < one["xc_median_s"] < one["median_s"]
        assert -1.3 < one["energy_hartree"] < -1.0  # H2: −1.17 Ha
    (more,) = bench("scf", *SMALL[:-1], "3")["results"]
    for name, runs in run["runs"].items():
        assert more["runs"][name][:2] == runs  # finished turns are not measured again
        assert len(more["functionals"][name]["times_s"]) == 3


def test_scaling_measures_time_memory_and_the_fast_form(bench):
    options = ["--family", "water", "--atoms", "3", "--atoms", "6", "--parent-atoms", "6", *SMALL]
    result = bench("scaling", *options, molecule=False)
    assert [r["n_atoms"] for r in result["results"]] == [3, 6]
    assert set(result["exponents"]) == {"water"}
    assert "network" in result["exponents"]["water"]
    for run in result["results"]:
        assert abs(run["fast_minus_reference_hartree_per_atom"]) < FAST_FORM
        assert run["n_evaluated"] <= run["n_points"]
        assert run["geometry_s"] > 0
        assert 1 <= run["tokens_in_sight"] <= run["n_atoms"]
        assert set(run["builds"]) == set(run["memory_mb"]) == {"deorbitalized", "PBE", "MS2"}
    again = bench("scaling", *options, "--atoms", "9", molecule=False)
    assert again["results"][:2] == result["results"]  # finished sizes are not measured again
    assert len(again["results"]) == 3
    assert set(again["results"][2]["builds"]) == {"deorbitalized"}


def test_train_times_every_part_of_a_step(bench):
    result = bench("train", "--points", "50", *SMALL)
    assert len(result["step"]["parts"]) == 4
    assert result["step"]["points_per_s"] > 0
    plain = result["plain_form"]
    assert plain["energy"]["points_per_s"] > 0 and plain["potential"]["points_per_s"] > 0


def test_peers_at_their_published_sizes(bench):
    result = bench("peers", "--points", "10", *SMALL)
    rows = result["networks"]
    assert set(result["whole_xc_build_us_per_point"]) == {"deorbitalized", "PBE", "MS2"}
    assert rows["expert transformers"]["points"] == 10
    assert rows["expert transformers"]["dtype"] == "float64"
    assert "random weights" in rows["expert transformers"]["note"]
    for name, row in rows.items():
        if name == "Skala 1.1" and "points" not in row:
            assert "not installed" in row["note"]
        else:
            assert row["energy_us_per_point"] > 0 and row["energy_and_potential_us_per_point"] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["xc", "--plot", "picture.bmp"], "give a name that ends in"),
        (["xc", "--plot", "missing/picture.svg"], "the folder missing is missing"),
        (["xc", "none.xyz"], "none.xyz is not a file"),
        (["scaling", "--family", "polymer"], "choose of alkane, water"),
        (["scf", "--model", "none"], "No model 'none'"),
    ],
)
def test_bad_input_gets_one_line(arguments, says, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "--model" not in arguments:
        arguments = [*arguments, "--model", str(model)]
    failed = CliRunner().invoke(app, ["bench", *arguments], catch_exceptions=False)
    assert failed.exit_code == 1 and failed.stdout == ""
    assert len(failed.stderr.splitlines()) == 1 and says in failed.stderr


def test_repeats_are_interleaved():
    calls: list[str] = []
    tasks = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = measure.interleaved(tasks, 3)
    assert calls == list("ababab")
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_peak_memory_counts_what_was_freed_again():
    with measure.PeakMemory() as peak:
        np.ones(10_000_000)  # 80 MB, gone at once
    if peak.mb is None:
        pytest.skip("this system does not tell its peak memory")
    assert 75 < peak.mb < 120


def test_stages_are_told_by_function_and_line():
    class Functional:
        def potential(self) -> None:
            self.at_points()

        def at_points(self) -> None:
            time.sleep(0.05)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "PACKAGE", __file__)
        sampler = stages.StageSampler()
        with sampler:
            Functional().potential()
    assert max(sampler.shares(), key=sampler.shares().__getitem__) == "experts"
    assert sum(sampler.shares().values()) == pytest.approx(1)


def test_a_stopwatch_changes_nothing(water):
    functional = random_functional()
    watch = measure.Stopwatch(functional)
    density = water.density
    rho, grad_rho = density.rho[0], density.grad_rho[0]
    geometry = watch.geometry(density.coords, density.centers)
    timed = watch.potential(rho, grad_rho, density.weights, geometry)
    plain = functional.potential(rho, grad_rho, density.weights, geometry)
    assert torch.equal(timed.vrho, plain.vrho)
    assert watch.exchange == float(plain.exc @ density.weights)
    assert len(watch.geometry_s) == len(watch.potential_s) == 1


def test_exponents_of_power_laws():
    def row(atoms: int) -> dict[str, Any]:
        times = {name: {"median_s": 1e-3 * atoms**2} for name in ("deorbitalized", "PBE", "MS2")}
        return {
            "n_atoms": atoms,
            "network": {"median_s": 0.1 * atoms},
            "geometry_s": 0.3 * atoms**1.5,
            "builds": times,
            "memory_mb": {name: None for name in times},
        }

    fits = scaling.exponents([row(n) for n in (20, 50, 150)])
    expected = {"network": 1, "geometry, once": 1.5, "PBE, XC build": 2}
    assert {name: fits[name] for name in expected} == pytest.approx(expected)
    assert not any("memory" in name for name in fits)


@pytest.mark.parametrize(("family", "shortest"), [("alkane", 1.09), ("water", 0.9572)])
@pytest.mark.parametrize("n_atoms", [20, 50, 150])
def test_families_are_molecules_of_the_right_size(family, shortest, n_atoms):
    atoms = systems.family_member(family, n_atoms)
    distances = get_distances(atoms.positions)[1] + 9 * np.eye(len(atoms))
    assert n_atoms <= len(atoms) < n_atoms + 3
    assert distances.min() == pytest.approx(shortest)
    bonded = (distances < 1.6).sum(1)  # Å: C–C 1.53, C–H 1.09, O–H 0.96 and H–H of water 1.51
    if family == "alkane":
        assert np.array_equal(bonded, np.where(atoms.numbers == 6, 4, 1))
    else:
        assert (bonded == 2).all()
