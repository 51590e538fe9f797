from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from taufree.console import refuse_picture, write_json
from taufree.data.systems import registry
from taufree.errors import UserError
from taufree.evaluation import density
from taufree.evaluation.density import COLUMNS, PROTOTYPE, evaluate, table
from taufree.evaluation.plots import plot_density
from taufree.functional import Functional
from taufree.physics.kinetic import DEORBITALIZERS

from .conftest import LEVEL, build


def test_model_with_the_exact_alpha_has_no_error_not_even_in_atomization(
    data: Path, one_orbital: Functional
) -> None:
    result = evaluate(one_orbital, data, "train", LEVEL)
    systems = {line["name"]: line["errors"]["model"] for line in result["systems"]}
    for name in ("H", "He", "H2"):
        assert max(map(abs, systems[name].values())) < 1e-5  # mHa, kcal/mol
    assert "atomization_kcal" in systems["H2"] and "atomization_kcal" not in systems["He"]
    assert abs(systems["Li"]["de_x_mha"]) > 1  # two orbitals of one spin


def test_result_counts_averages_and_names_what_is_missing(
    data: Path, functional: Functional, tmp_path: Path
) -> None:
    result = evaluate(functional, data, "test", LEVEL)
    assert [line["name"] for line in result["systems"]] == ["CH", "LiF"]
    assert {"CO", "C6H6"} < set(result["missing"]) and "LiF" not in result["missing"]
    assert set(result["means"]) == {"all molecules", "prototype", "g2"}
    assert result["means"]["all molecules"] == result["means"]["prototype"] == result["means"]["g2"]
    means = result["means"]["all molecules"]
    assert set(means) == {"count", "model", *DEORBITALIZERS} and means["count"] == 2
    per_system = [line["errors"]["PCopt"] for line in result["systems"]]
    assert set(per_system[1]) == set(COLUMNS)
    # CH has no atomization energy here, for carbon is not in the data
    assert means["PCopt"]["atomization_kcal"] == abs(per_system[1]["atomization_kcal"])
    for key in ("de_x_mha", "vtau"):
        assert means["PCopt"][key] == pytest.approx(sum(abs(e[key]) for e in per_system) / 2)
    assert result["atom_grid_levels"] == {"F": 1, "H": 1, "Li": 1}
    assert sum(result["routing"]["electron_share"]) == pytest.approx(1)
    assert result["routing"]["max_active"] == 2
    # |ΔE_x| and L1 of PCopt for LiF, part of the means of 70.5 and 124.3 over the eight
    assert per_system[1]["de_x_mha"] == pytest.approx(-24.034, abs=2e-3)
    assert per_system[1]["l1_mha"] == pytest.approx(76.559, abs=2e-3)

    console = Console(file=io.StringIO(), width=120)
    console.print(table(result))
    shown = console.file.getvalue()
    assert (
        "grid level 1" in shown
        and "PCopt" in shown
        and "untrained" in shown
        and f"{len(result['missing'])} of the split" in shown
    )
    write_json(tmp_path / "result.json", result)
    assert json.loads((tmp_path / "result.json").read_text())["means"]["all molecules"] == means
    plot_density(result, tmp_path / "errors.svg")
    assert (tmp_path / "errors.svg").read_text().count("<svg") == 1


def test_an_interrupted_evaluation_goes_on(
    data: Path, functional: Functional, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "result.json"
    with monkeypatch.context() as patched:
        patched.setattr(density, "load_record", _interrupted_at("LiF", density.load_record))
        with pytest.raises(KeyboardInterrupt):
            evaluate(functional, data, "test", LEVEL, keep=kept)
    whole = evaluate(functional, data, "test", LEVEL)
    with monkeypatch.context() as patched:
        patched.setattr(density, "load_record", _interrupted_at("CH", density.load_record))
        assert evaluate(functional, data, "test", LEVEL, keep=kept) == whole
    with monkeypatch.context() as patched:  # another level has nothing to go on from
        patched.setattr(density, "load_record", _interrupted_at("CH", density.load_record))
        with pytest.raises(KeyboardInterrupt):
            evaluate(functional, data, "test", LEVEL - 1, keep=kept)


def _interrupted_at(name: str, load: Callable[..., Any]) -> Callable[..., Any]:
    def interrupted(path: Path, *arguments: Any) -> Any:
        if path.stem.endswith(f"_{name}"):
            raise KeyboardInterrupt
        return load(path, *arguments)

    return interrupted


def test_what_cannot_be_evaluated_is_refused(
    data: Path, functional: Functional, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"no converged density of the test split at grid level 3"):
        evaluate(functional, data)
    with pytest.raises(UserError, match="taufree data build"):
        evaluate(functional, tmp_path)
    with pytest.raises(UserError, match="ends in"):
        refuse_picture(tmp_path / "errors.txt")
    with pytest.raises(UserError, match="missing"):
        refuse_picture(tmp_path / "nowhere" / "errors.svg")


def test_another_parents_densities_serve_at_fixed_density(
    data: Path, one_orbital: Functional
) -> None:
    """α = 0 is exact in H2 and He for every parent; the densities' own functional is named."""
    network = one_orbital.network
    network.config = network.config.model_copy(update={"parent": "r2scan"})
    result = evaluate(one_orbital, data, "train", LEVEL)
    assert (result["parent"], result["densities"]) == ("R2SCAN", ["MS2"])
    errors = {line["name"]: line["errors"]["model"]["l1_mha"] for line in result["systems"]}
    assert errors["H2"] < 1e-3 and errors["He"] < 1e-3
    assert "R2SCAN exchange at" in str(table(result).title)


@pytest.mark.slow
def test_classic_deorbitalizers_reproduce_the_prototype(
    tmp_path: Path, functional: Functional
) -> None:
    """Means over the eight systems at grid level 1, measured by an independent program."""
    build(tmp_path, [registry()[name] for name in PROTOTYPE])
    means = evaluate(functional, tmp_path, "test", LEVEL)["means"]["prototype"]
    assert means["count"] == len(PROTOTYPE)
    expected = {"TFvW": (886, 924), "PC07": (177, 214), "CSK4": (249, 279), "PCopt": (70.5, 124.3)}
    for name, (energy, l1) in expected.items():
        assert means[name]["de_x_mha"] == pytest.approx(energy, abs=0.5)
        assert means[name]["l1_mha"] == pytest.approx(l1, abs=0.5)
