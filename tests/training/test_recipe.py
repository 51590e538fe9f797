"""``make weights``: the runs that lead to the bundled weights, one from another."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from taufree.data.build import build
from taufree.data.systems import registry
from taufree.model.storage import load_model
from taufree.training import loop
from taufree.training.config import TrainingConfig, read_config

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "src" / "taufree" / "weights"
RUNS = re.findall(r"for run in (.+?);", (ROOT / "Makefile").read_text())[0].split()
SMALL = """H2 He Li+ BH BeH2 He-He HCl+He H2@0.9 H2@distorted C2H3@twist0-1 H2@parted0-1 H2-H-H2
H2@def2-svp H2@field He-hcp He-hcp@0.94 He-hcp-gth NH""".split()
"""Of each kind a system to learn from, and one to validate."""


def card(weights: Path) -> dict[str, Any]:
    return json.loads(weights.with_suffix(".json").read_text())


@pytest.mark.parametrize("name", ["ms2", "r2scan"])
def test_bundled_weights_have_the_settings_of_the_tracked_config(name: str) -> None:
    assert name in RUNS
    made = card(BUNDLED / name)
    settings = read_config(ROOT / "configs" / f"{name}.toml", TrainingConfig)
    assert {**made["training"], "model": made["config"]} == settings.model_dump(mode="json")


@pytest.mark.slow
def test_every_run_goes_on_from_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe with a few steps a run, on a system of each kind."""
    monkeypatch.chdir(tmp_path)
    compound = next(name for name in registry() if name.startswith("smiles [NH2]"))
    entries = build(Path("data"), [registry()[name] for name in [*SMALL, compound]], workers=2)
    assert {entry.status for entry in entries.values()} == {"done"}
    for run in RUNS:
        tracked = (ROOT / "configs" / f"{run}.toml").read_text()
        short = re.sub(r"(?m)^(steps|warmup_steps|validate_every) = .*$", r"\1 = 4", tracked)
        Path(f"{run}.toml").write_text(short)
        config = read_config(Path(f"{run}.toml"), TrainingConfig)
        assert config.shares.keys() <= {entry.kind for entry in entries.values()} | {"scaled"}
        loop.train(Path(f"{run}.toml"))
        if config.start:
            before, after = card(config.start), card(config.out / config.name)
            assert after["start"]["sha256"] == before["sha256"] != after["sha256"]
    for name in ("ms2", "r2scan"):
        assert load_model(Path("runs", name, name)).parent.xc == load_model(name).parent.xc
