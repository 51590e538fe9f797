"""A run that is interrupted goes on as if nothing had happened."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from taufree.data.store import read_manifest, write_manifest
from taufree.errors import UserError
from taufree.model.network import Network
from taufree.model.storage import load_model, read_card
from taufree.training import loop
from taufree.training.checkpoint import load_checkpoint
from taufree.training.config import TrainingConfig, read_config
from taufree.training.sets import load_densities


def write_toml(path: Path, config: TrainingConfig) -> Path:
    """The settings as a file for `train`."""
    fields = config.model_dump(mode="json", exclude={"model"}, exclude_none=True)
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items()))
    return path


def test_resumed_run_is_the_same_bit_for_bit(
    config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_toml(tmp_path / "whole.toml", config)
    loop.train(whole)
    again = config.model_copy(update={"out": tmp_path / "again"})
    path = write_toml(tmp_path / "again.toml", again)
    drawn = loop.draw_batch

    def break_off(step: int, *args: object) -> object:
        if step == 5:
            raise KeyboardInterrupt
        return drawn(step, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "draw_batch", break_off)
        with pytest.raises(KeyboardInterrupt):
            loop.train(path)
    loop.train(path)
    first, second = (load_file(c.out / "checkpoint.safetensors") for c in (config, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (config.out / "log.jsonl").read_text() == (again.out / "log.jsonl").read_text()


def test_two_processes_of_torchrun_are_one_run(config: TrainingConfig, tmp_path: Path) -> None:
    path, script = write_toml(tmp_path / "two.toml", config), tmp_path / "train.py"
    script.write_text(
        "from pathlib import Path\n"
        "from taufree.training.loop import train\n"
        f"train(Path({str(path)!r}))\n"
    )
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    subprocess.run(run, check=True, capture_output=True, timeout=300)
    log = [json.loads(line) for line in (config.out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [3, 6]  # each once
    assert load_model(config.out / "ms2.safetensors")
    alone = config.model_copy(update={"out": tmp_path / "alone"})
    loop.train(write_toml(tmp_path / "alone.toml", alone))
    one, two = (load_file(c.out / "checkpoint.safetensors") for c in (alone, config))
    assert any(not torch.equal(one[key], two[key]) for key in one)  # other draws have joined


def test_training_lowers_the_error(config: TrainingConfig, tmp_path: Path) -> None:
    long = config.model_copy(
        update={"steps": 120, "points_per_density": 300, "learning_rate": 1e-2, "warmup_steps": 10}
    )
    result = loop.train(write_toml(tmp_path / "c.toml", long))
    lines = [json.loads(line) for line in (long.out / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["train"]["l1"] < 0.5 * lines[0]["train"]["l1"]
    assert (long.out / "learning_curve.svg").read_text().startswith("<?xml")
    trained = load_model(result["weights"])
    assert trained.parent.xc == "MS2" and trained.elements == {"H", "Li"}  # N only validates


def test_checkpoint_of_other_settings_is_refused(config: TrainingConfig, tmp_path: Path) -> None:
    loop.train(write_toml(tmp_path / "c.toml", config))
    other = config.model_copy(update={"learning_rate": 1e-3})
    with pytest.raises(UserError, match="other settings"):
        loop.train(write_toml(tmp_path / "d.toml", other))


def test_checkpoint_of_other_data_is_refused(
    config: TrainingConfig, folder: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(folder, tmp_path / "data")
    path = write_toml(tmp_path / "c.toml", config.model_copy(update={"data": data}))
    loop.train(path)
    entries = read_manifest(data)
    write_manifest(data, {name: e for name, e in entries.items() if name != "Li"})
    with pytest.raises(UserError, match="other data"):
        loop.train(path)


def test_damaged_checkpoint_is_refused(config: TrainingConfig, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path, Network(config.model), [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data = 1\nout =", "not TOML"),
        ('data = "d"\nout = "o"\nstep = 3', "step"),
        ('data = "d"\nout = "o"\nlearning_rate = -1', "learning_rate"),
        ('data = "d"\nout = "o"\nwarmup_steps = 0', "warmup_steps"),
        ('data = "d"\nout = "o"\n[model]\nn_heads = 3', "multiple of n_heads"),
    ],
)
def test_bad_settings_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_config(path, TrainingConfig)


def test_no_data_is_said(config: TrainingConfig, tmp_path: Path) -> None:
    empty = config.model_copy(update={"data": tmp_path / "nothing"})
    with pytest.raises(UserError, match="data build"):
        load_densities(empty, "train", torch.device("cpu"))


def test_kinds_without_a_share_are_not_read(config: TrainingConfig) -> None:
    shared = config.model_copy(update={"shares": {"g2": 1.0, "crystals": 0.0}})
    assert set(load_densities(shared, "train", torch.device("cpu")).kinds) == {"g2"}
    other = config.model_copy(update={"shares": {"crystals": 1.0}})
    with pytest.raises(UserError, match="shares"):
        load_densities(other, "train", torch.device("cpu"))


def test_a_run_starts_from_given_weights(config: TrainingConfig, tmp_path: Path) -> None:
    first = loop.train(write_toml(tmp_path / "c.toml", config))
    fields = {"start": first["weights"], "out": tmp_path / "on", "learning_rate": 1e-12}
    second = loop.train(write_toml(tmp_path / "d.toml", config.model_copy(update=fields)))
    assert second["validation"] == pytest.approx(first["validation"], rel=1e-5)
    start, card = (read_card(Path(run["weights"])) for run in (first, second))
    assert card["start"]["sha256"] == start["sha256"] and start["start"] is None
    assert card["systems"] == start["systems"]
