"""`taufree evaluate`: a table, JSON and a picture, or one line that says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from taufree.cli import app
from taufree.evaluation import scf
from taufree.functional import Functional
from taufree.model.storage import save_model

PNG = b"\x89PNG"


def taufree(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def model(tmp_path: Path, functional: Functional, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model's file in an otherwise empty working folder."""
    save_model(tmp_path / "untrained.safetensors", functional.network, {})
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return "../untrained"


def test_density(model: str, data: Path) -> None:
    options = ["--model", model, "--grid-level", 1, "--json", "d.json", "--plot", "d.png"]
    done = taufree("density", data, *options)
    assert done.exit_code == 0, done.stderr
    assert "PCopt" in done.stdout and "untrained" in done.stdout and "LiF" in done.stdout
    result = json.loads(Path("d.json").read_text())
    assert result["grid_level"] == 1 and result["means"]["prototype"]["count"] == 2
    assert Path("d.png").read_bytes().startswith(PNG)


def test_scf_passes_its_options_on(
    model: str, functional: Functional, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = {"converged": True, "cycles": 8, "energy_hartree": -2.9, "wall_s": 1.0}
    line = {
        "name": "He", "formula": "He", "kind": "g2", "basis": "def2-tzvp", "deorbitalized": run,
        "parent": run, "de_total_mha": 0.5, "d_dipole_debye": 0.0, "atomization_kcal": None,
        "d_gap_ev": None,
    }  # fmt: skip
    asked: dict[str, Any] = {}

    def stub(*arguments: Any, **options: Any) -> dict[str, Any]:
        asked.update(options, model=arguments[0], split=arguments[1])
        return {
            "model": "m", "potential": "ks", "parent": "MS2", "grid_level": 2,
            "summary": scf.summary([line]), "systems": [line], "atoms": [],
        }  # fmt: skip

    monkeypatch.setattr(scf, "evaluate", stub)
    options = ["--model", model, "--split", "validation", "--name", "He", "--grid-level", 2]
    done = taufree("scf", "kept", *options, "--workers", 1, "--json", "s.json", "--plot", "s.png")
    assert done.exit_code == 0, done.stderr
    assert asked["out"] == Path("kept") and asked["level"] == 2 and asked["workers"] == 1
    assert asked["split"] == "validation" and [s.name for s in asked["systems"]] == ["He"]
    assert "converged: 1 of 1" in done.stdout and "+0.50" in done.stdout
    assert json.loads(Path("s.json").read_text())["summary"]["converged"] == 1
    assert Path("s.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["density", "nowhere"], "nowhere holds no converged density"),
        (["density", "nowhere", "--plot", "x.txt"], "ends in .png"),
        (["scf", "--name", "Unobtainium"], "unknown system"),
        (["scf", "--kind", "crystal"], "unknown kind"),
        (["solids", "--name", "H2O"], "no all-electron crystal"),
        (["scf", "--model", "none"], "No model 'none'"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(
    model: str, arguments: list[str], says: str
) -> None:
    failed = taufree(
        arguments[0], *arguments[1:], *(["--model", model] if "--model" not in arguments else [])
    )
    assert failed.exit_code == 1 and failed.stdout == ""
    *_, message = failed.stderr.splitlines()
    assert message.startswith("taufree: ") and says in message
    assert not list(Path().iterdir())


def test_interruption_says_that_finished_systems_are_kept(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scf, "evaluate", interrupted)
    stopped = taufree("scf", "--model", model)
    assert stopped.exit_code == 130 and "Finished systems are kept" in stopped.stderr
