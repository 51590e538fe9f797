from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.eos import birchmurnaghan
from ase.units import Hartree
from rich.console import Console
from typer.testing import CliRunner

from networks import random_functional
from taufree.cli import app
from taufree.data.crystals import lattice_constant
from taufree.data.systems import System, registry
from taufree.errors import UserError
from taufree.evaluation import plots, solids
from taufree.evaluation.self_consistent import Task, Which, converge
from taufree.evaluation.solids import STEP, free_atoms
from taufree.evaluation.workers import Run, failed

BULK, DERIVATIVE, COHESION = 0.003, 4.0, 0.2  # atomic units; the last per atom
FREE_ATOM = -1.0


def made_up(crystal: System, point: System, stretch: float, bulk: float) -> Run:
    """A point or free atom on a curve with its minimum at ``stretch`` times the table's volume."""
    run: Run = {"converged": True, "cycles": 8, "wall_s": 1.0, "energy_hartree": FREE_ATOM}
    if point.period is None:
        return run
    volume = stretch * solids._volume(crystal)
    minimum = len(crystal.symbols) * (FREE_ATOM - COHESION)
    energy = birchmurnaghan(solids._volume(point), minimum, bulk, DERIVATIVE, volume)
    return run | {"energy_hartree": energy, "gap_ev": 6.0 * stretch, "moment": 0.0}


CRYSTALS = registry()["Si-diamond"], registry()["LiF-rocksalt"]
PARENTS, OURS = (0.96, BULK), (0.96 * 1.03, 1.1 * BULK)
FAILS = f"LiF-rocksalt@{STEP**-3:g}"  # the smallest volume


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """What is calculated: the model's volumes are 3% larger, and a point of LiF fails."""
    tasks: list[Task] = []

    def converge_all(
        systems: set[System], *_: Any, which: list[Which], **__: Any
    ) -> dict[Task, Run]:
        runs: dict[Task, Run] = {}
        for system in systems:
            for each in which:
                crystal = next(c for c in CRYSTALS if set(system.symbols) <= set(c.symbols))
                curve = PARENTS if each == "parent" else OURS
                runs[system, each] = made_up(crystal, system, *curve)
                if (system.name, each) == (FAILS, "deorbitalized"):
                    runs[system, each] = failed(ValueError("no"))
        tasks.extend(runs)
        return runs

    monkeypatch.setattr(solids, "converge_all", converge_all)
    return tasks


@pytest.fixture
def result(asked: list[Task]) -> dict[str, Any]:
    return solids.evaluate(random_functional(), systems=CRYSTALS)


def test_volumes_surround_the_parents_lowest_and_none_is_calculated_twice(
    asked: list[Task], result: dict[str, Any]
) -> None:
    assert len(asked) == len(set(asked))
    for line, crystal in zip(result["crystals"], CRYSTALS, strict=True):
        shares = np.array(line["volumes"]) / solids._volume(crystal)
        np.testing.assert_allclose(shares, STEP ** np.arange(-3, 2))  # 0.96 is nearest STEP ** -1
        ours = [s.name for s, which in asked if which != "parent" and s.symbols == crystal.symbols]
        assert len(ours) == len(shares)


def test_a_curve_without_minimum_ends(asked: list[Task], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PARENTS", (2.0, BULK))
    result = solids.evaluate(random_functional(), systems=CRYSTALS[:1])
    last = result["crystals"][0]["volumes"][-1] / solids._volume(CRYSTALS[0])
    assert last == pytest.approx(STEP ** (solids.FARTHEST + solids.REACH))
    assert result["crystals"][0]["delta_mev"] is None


def test_the_parent_alone(asked: list[Task]) -> None:
    result = solids.evaluate(random_functional(), systems=CRYSTALS, parent_only=True)
    assert {which for _, which in asked} == {"parent"}
    silicon, _ = result["crystals"]
    assert silicon["parent"]["bulk_modulus_gpa"] > 0
    assert silicon["deorbitalized"]["points"] == []
    with (console := Console(width=160)).capture() as capture:
        console.print(solids.table(result))
    assert "– / 8" in capture.get()


def test_curves_give_back_what_they_were_made_of(result: dict[str, Any]) -> None:
    silicon, _ = result["crystals"]
    a = lattice_constant("Si-diamond")
    assert a == pytest.approx(5.47, abs=0.01)  # ase.collections.dcdft, the cubic cell
    parent = silicon["parent"]
    assert parent["lattice_constant_angstrom"] == pytest.approx(a * 0.96 ** (1 / 3), rel=1e-5)
    assert parent["cohesive_ev"] == pytest.approx(COHESION * Hartree, rel=1e-5)
    assert silicon["d_lattice_constant_angstrom"] == pytest.approx(
        a * 0.96 ** (1 / 3) * (1.03 ** (1 / 3) - 1), rel=1e-3
    )
    assert silicon["d_bulk_modulus_percent"] == pytest.approx(10, rel=1e-3)
    assert silicon["d_cohesive_ev"] == pytest.approx(0, abs=1e-4)
    assert silicon["d_gap_ev"] == pytest.approx(6 * 0.96 * 0.03)
    assert silicon["d_moment"] is None
    assert silicon["delta_mev"] > 1


def test_a_point_that_fails_is_reported_and_compares_nothing(result: dict[str, Any]) -> None:
    _, fluoride = result["crystals"]
    assert fluoride["delta_mev"] is None
    assert fluoride["deorbitalized"]["points"][0]["error"] == "ValueError: no"
    found = result["summary"]
    assert (found["n_points"], found["converged"], found["parent_converged"]) == (10, 9, 10)
    assert found["not_converged"] == ["LiF-rocksalt"]
    assert found["worst_delta_mev"] == "Si-diamond"


def test_table_and_plot_show_every_crystal(result: dict[str, Any], tmp_path: Path) -> None:
    with (console := Console(width=160)).capture() as capture:
        console.print(solids.table(result))
    text = capture.get()
    for shown in ("Si-diamond", "LiF-rocksalt", "NO / 8", "9 of 10 points"):
        assert shown in text
    plots.plot_solids(result, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_command_passes_its_options_on(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def stub(model: str, split: str, **options: Any) -> dict[str, Any]:
        asked.update(options, model=model, split=split)
        return result

    monkeypatch.setattr(solids, "evaluate", stub)
    monkeypatch.chdir(tmp_path)
    options = ["--name", "Si-diamond", "--workers", "1", "--json", "s.json", "--plot", "s.svg"]
    options.append("--parent-only")
    done = CliRunner().invoke(app, ["evaluate", "solids", "kept", *options])
    assert done.exit_code == 0, done.stderr
    assert (asked["out"], asked["workers"], asked["split"]) == (Path("kept"), 1, "test")
    assert asked["parent_only"]
    assert [system.name for system in asked["systems"]] == ["Si-diamond"]
    assert json.loads(Path("s.json").read_text())["summary"]["n_crystals"] == 2
    assert "Si-diamond" in done.stdout and Path("s.svg").stat().st_size > 0


def test_free_atoms_are_spin_polarized_in_the_whole_basis() -> None:
    [carbon] = free_atoms(registry()["C-diamond"])
    assert (carbon.spin, carbon.basis) == (2, registry()["C-diamond"].basis)
    assert [a.name for a in free_atoms(registry()["LiF-rocksalt"])] == ["F", "Li"]


def test_only_crystals_are_taken() -> None:
    for wrong in ("H2O", "Si-diamond-gth", "Si-diamond@0.94"):
        with pytest.raises(UserError, match="no all-electron crystal"):
            solids.evaluate(random_functional(), systems=[registry()[wrong]])


def test_both_functionals_use_the_kept_integrals(tmp_path: Path) -> None:
    helium = registry()["He-hcp"]
    assert helium.period
    helium = replace(helium, period=replace(helium.period, mesh=(1, 1, 1)))
    first = converge(helium, None, 0, tmp_path)
    [kept] = tmp_path.iterdir()
    stamp = kept.stat().st_mtime_ns
    again = converge(helium, None, 0, tmp_path)
    assert again["energy_hartree"] == pytest.approx(first["energy_hartree"], abs=1e-10)
    assert converge(helium, None, 0)["energy_hartree"] == pytest.approx(first["energy_hartree"])
    ours = converge(helium, random_functional(roughness=1.0), 0, tmp_path)
    assert ours["converged"]
    assert np.isfinite(ours["energy_hartree"])
    assert ours["gap_ev"] > 5
    assert [kept] == list(tmp_path.iterdir())
    assert kept.stat().st_mtime_ns == stamp
