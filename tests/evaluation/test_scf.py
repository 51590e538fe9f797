from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from rich.console import Console

from taufree.data.systems import System, registry
from taufree.errors import UserError
from taufree.evaluation import self_consistent
from taufree.evaluation.plots import plot_scf
from taufree.evaluation.scf import evaluate, summary, table
from taufree.evaluation.self_consistent import converge, converge_all
from taufree.evaluation.thermochemistry import atomization, atoms_of
from taufree.evaluation.workers import run_all
from taufree.functional import Functional
from taufree.model.storage import fingerprint

Small = Callable[[str], System]
NOWHERE = "tcp://127.0.0.1:1"


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**options) as cluster:
        yield cluster.scheduler_address


def stamps(out: Path) -> dict[str, int]:
    return {str(p.relative_to(out)): p.stat().st_mtime_ns for p in out.glob("*/*.json")}


def test_one_orbital_systems_agree_with_the_parent_and_finished_ones_stay(
    tmp_path: Path, small: Small, one_orbital: Functional, scheduler: str
) -> None:
    systems = [small("H2"), small("He")]
    options: dict[str, Any] = {"out": tmp_path, "systems": systems, "level": 1}
    result = evaluate(one_orbital, scheduler=scheduler, **options)
    assert [line["name"] for line in result["systems"]] == ["H2", "He"]
    assert [(line["name"], line["basis"]) for line in result["atoms"]] == [("H", "def2-svp")]
    hydrogen = result["systems"][0]
    assert hydrogen["deorbitalized"]["converged"] and hydrogen["parent"]["converged"]
    # τ = τ_W for one orbital: the same functional, converged to PySCF's 1e-9 hartree
    assert abs(hydrogen["de_total_mha"]) < 1e-4
    assert abs(hydrogen["atomization_kcal"]) < 1e-4
    assert hydrogen["d_dipole_debye"] < 1e-5
    found = result["summary"]
    assert found["converged"] == found["parent_converged"] == 1 and found["compared"] == 2
    assert found["max_de_total_mha"] < 1e-4 and found["median_cycles"] >= 2
    first = stamps(tmp_path)
    assert len(first) == 6  # three systems, two functionals

    # nothing to do: no scheduler is asked
    assert evaluate(one_orbital, scheduler=NOWHERE, **options) == result

    # another potential: its own results; with the exact τ its orbital energies are the parent's
    generalized = evaluate(one_orbital, scheduler=scheduler, potential="gks", **options)
    hydrogen = generalized["systems"][0]
    assert abs(hydrogen["de_total_mha"]) < 1e-4
    assert abs(hydrogen["d_gap_ev"]) < 1e-4
    assert generalized["potential"] == "gks" and result["potential"] == "ks"
    assert len(stamps(tmp_path)) == 9
    for path in tmp_path.glob("*-gks/*.json"):
        path.unlink()

    # another model: only its own calculations are missing
    one_orbital.network.experts.experts[0][-1].bias.data += 1
    assert len(evaluate(one_orbital, scheduler=scheduler, **options)["systems"]) == 2
    second = stamps(tmp_path)
    assert len(second) == 9 and first.items() <= second.items()

    # a damaged file is calculated anew, the others are not
    damaged = next(tmp_path.glob("parent-MS2/g2_H2-*.json"))
    damaged.write_text('{"conv')
    assert evaluate(one_orbital, scheduler=scheduler, **options)["summary"]["compared"] == 2
    assert {k for k, v in stamps(tmp_path).items() if second[k] != v} == {
        str(damaged.relative_to(tmp_path))
    }


def test_a_crystal_beside_its_parent(tmp_path: Path, scheduler: str) -> None:
    systems = [registry()["Ne-fcc-gth"]]
    result = evaluate("ms2", systems=systems, out=tmp_path, level=1, scheduler=scheduler)
    (line,) = result["systems"]
    assert line["deorbitalized"]["converged"] and line["parent"]["converged"]
    assert abs(line["de_total_mha"]) < 20
    assert line["d_dipole_debye"] is None and line["atomization_kcal"] is None
    assert len(list(tmp_path.glob("integrals/*.h5"))) == 1  # of both
    Console(file=io.StringIO()).print(table(result))


def test_failed_calculations_are_shown_and_tried_again(
    tmp_path: Path, small: Small, one_orbital: Functional, scheduler: str
) -> None:
    bad = replace(small("Be"), basis="no-such-basis")
    console = Console(file=io.StringIO(), width=120)
    options: dict[str, Any] = {"out": tmp_path, "level": 0, "scheduler": scheduler}
    systems = [small("He"), bad]
    result = evaluate(one_orbital, systems=systems, console=console, **options)
    assert "Be, parent: " in console.file.getvalue()
    line = result["systems"][1]
    assert "basis" in line["deorbitalized"]["error"]
    assert line["de_total_mha"] is None and line["parent"]["converged"] is False
    assert result["summary"]["converged"] == 0.5
    assert result["summary"]["not_converged"] == ["Be"]
    console.print(table(result))
    shown = console.file.getvalue()
    assert "NO, parent NO" in shown and "converged: 1 of 2, parent 1 of 2" in shown
    plot_scf(result, tmp_path / "scf.svg")
    assert "not converged" in (tmp_path / "scf.svg").read_text()
    assert not list(tmp_path.glob("*/g2_Be-*"))


def test_interrupted_evaluation_keeps_what_is_finished(
    tmp_path: Path,
    small: Small,
    one_orbital: Functional,
    scheduler: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield next(run_all(*arguments, **options))
        raise KeyboardInterrupt

    systems = [small("He"), small("H")]
    options: dict[str, Any] = {"out": tmp_path, "scheduler": scheduler}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(self_consistent, "run_all", interrupted)
        converge_all(systems, one_orbital, 0, **options)
    first = stamps(tmp_path)
    assert len(first) == 1
    assert len(converge_all(systems, one_orbital, 0, **options)) == 4
    second = stamps(tmp_path)
    assert len(second) == 4 and first.items() <= second.items()
    converge_all(systems, one_orbital, 1, **options)  # another grid is another calculation
    assert len(stamps(tmp_path)) == 8


def test_what_does_not_converge_is_no_error_but_no_result_either(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hasty(system: System, plain: Any = self_consistent.mean_field) -> Any:
        mf = plain(system)
        mf.max_cycle = 1
        return mf

    converged = converge(small("He"), None, 0)
    monkeypatch.setattr(self_consistent, "mean_field", hasty)
    run = converge(small("H2"), None, 0)
    assert run["converged"] is run["rescued"] is False and run["cycles"] == 1
    atom = converge(small("He"), None, 0)  # molecules need its energy: found by other means
    assert atom["converged"] is False and atom["rescued"] is True and atom["cycles"] == 1
    assert atom["energy_hartree"] == pytest.approx(converged["energy_hartree"], abs=1e-7)
    lines = [
        {"name": "a", "deorbitalized": run, "parent": converged, "de_total_mha": None},
        {
            "name": "b",
            "deorbitalized": converged,
            "parent": converged,
            "de_total_mha": -2.0,
            "d_gap_ev": None,
            "d_dipole_debye": 0.0,
            "atomization_kcal": None,
        },
    ]
    found = summary(lines)
    assert found["converged"] == 0.5 and found["not_converged"] == ["a"] and found["compared"] == 1
    assert found["mean_de_total_mha"] == found["max_de_total_mha"] == 2
    assert found["mean_atomization_kcal"] is None and found["wall_ratio"] == 1
    assert found["median_cycles"] == (1 + converged["cycles"]) / 2


def test_models_are_told_apart_by_their_parameters(functional: Functional) -> None:
    first = fingerprint(functional)
    functional.name = "renamed"
    assert fingerprint(functional) == first
    next(functional.network.parameters()).data[0] += 1e-9
    assert fingerprint(functional) != first


def test_nothing_to_calculate_is_refused(functional: Functional) -> None:
    with pytest.raises(UserError, match="no system"):
        evaluate(functional, systems=[])


def test_atomization_is_of_neutral_molecules() -> None:
    systems = registry()
    assert atoms_of(systems["C2H2"]) == {"C": 2, "H": 2}
    for name in ("S", "OH-", "HF-H2O", "H2@0.9"):
        assert not atoms_of(systems[name])
    # the experimental atomization energy of N2 is 0.364 hartree
    assert atomization(-109.5, {"N": 2}, {"N": -54.57}) == pytest.approx(0.36)
