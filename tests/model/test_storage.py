"""Weights on disk: bit-exact there and back, and nothing wrong is ever loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import taufree
from networks import random_network
from taufree.errors import UserError, WeightsError
from taufree.model import storage
from taufree.model.network import Network
from taufree.model.storage import bundled_models, load_model, read_card, save_model


@pytest.fixture
def network() -> Network:
    return random_network(dtype=torch.float32)


@pytest.fixture
def saved(network: Network, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(path, network, {"command": "taufree train x.toml", "metrics": {"l1": 1.5}})
    return path


def edit_card(path: Path, **changes: Any) -> None:
    card_path = path.with_suffix(".json")
    card_path.write_text(json.dumps(json.loads(card_path.read_text()) | changes))


def test_round_trip_is_bit_exact(network: Network, saved: Path) -> None:
    for name in (saved, str(saved), saved.with_suffix(".json")):
        functional = load_model(name)
        loaded = functional.network.state_dict()
        assert loaded.keys() == network.state_dict().keys()
        for key, value in network.state_dict().items():
            assert torch.equal(loaded[key], value) and loaded[key].dtype == torch.float32
        assert functional.network.config == network.config
        assert functional.name == "model"
        assert not functional.network.training


def test_the_card_tells_where_the_weights_come_from(saved: Path) -> None:
    card = read_card(saved)
    assert card["command"] == "taufree train x.toml" and card["metrics"] == {"l1": 1.5}
    assert card["sha256"] == hashlib.sha256(saved.read_bytes()).hexdigest()


def test_elements_travel_with_the_weights(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "trained.safetensors"
    save_model(path, network, {"elements": ["H", "O"], "pseudopotentials": ["O"]})
    functional = load_model(path)
    assert load_model(functional) is functional
    assert functional.elements == functional.double().elements == {"H", "O"}
    assert functional.pseudopotentials == functional.double().pseudopotentials == {"O"}


def test_safetensors_opens_it_without_taufree(network: Network, saved: Path) -> None:
    assert load_file(saved).keys() == network.state_dict().keys()


def test_nothing_is_pickled(saved: Path) -> None:
    """Neither what is written nor the code that reads it knows pickle."""
    assert b"\x80\x02" != saved.read_bytes()[:2] and not saved.read_bytes().startswith(b"PK")
    json.loads(saved.with_suffix(".json").read_text())
    sources = Path(storage.__file__).parents[1].rglob("*.py")
    assert not [
        p for p in sources if "import pickle" in (text := p.read_text()) or "torch.load(" in text
    ]


@pytest.mark.parametrize("position", [0, 9, 200, -1])
def test_one_flipped_bit_is_found(saved: Path, position: int) -> None:
    blob = bytearray(saved.read_bytes())
    blob[position] ^= 1
    saved.write_bytes(blob)
    with pytest.raises(WeightsError, match="checksum"):
        load_model(saved)


def test_a_truncated_file_is_found(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="checksum"):
        load_model(saved)


@pytest.mark.parametrize(
    "changes",
    [{"width": 32}, {"n_experts": 4}, {"n_radial": [13, 5]}, {"colour": "red"}, {"cutoff": -1}],
)
def test_weights_of_another_architecture(saved: Path, changes: dict[str, Any]) -> None:
    edit_card(saved, config=read_card(saved)["config"] | changes)
    with pytest.raises(WeightsError, match="another architecture"):
        load_model(saved)


def test_weights_of_another_parent(saved: Path) -> None:
    edit_card(saved, config=read_card(saved)["config"] | {"parent": "unheard-of"})
    with pytest.raises(WeightsError, match="another architecture"):
        load_model(saved)


def test_a_card_without_a_config(saved: Path) -> None:
    card_path = saved.with_suffix(".json")
    card = json.loads(card_path.read_text())
    del card["config"]
    card_path.write_text(json.dumps(card))
    with pytest.raises(WeightsError):
        load_model(saved)


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"format": 99}', "\xff"])
def test_a_missing_or_damaged_card(saved: Path, text: str | None) -> None:
    card_path = saved.with_suffix(".json")
    if text is None:
        card_path.unlink()
    else:
        card_path.write_bytes(text.encode("latin-1"))
    with pytest.raises(WeightsError, match=r"model\.json"):
        load_model(saved)


def test_bytes_that_are_not_weights(saved: Path) -> None:
    """With a matching checksum: the format itself is checked."""
    blob = b"these are not weights"
    saved.write_bytes(blob)
    edit_card(saved, sha256=hashlib.sha256(blob).hexdigest())
    with pytest.raises(WeightsError):
        load_model(saved)


def test_a_model_that_does_not_exist(tmp_path: Path) -> None:
    for name in ("no-such-model", str(tmp_path / "none.safetensors"), str(tmp_path)):
        with pytest.raises(WeightsError, match=r"give a \.safetensors file or a name of"):
            load_model(name)
    assert issubclass(WeightsError, UserError)


def test_an_interrupted_write_leaves_the_old_file(
    saved: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def full_disk(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(UserError, match="disk is full"):
        save_model(saved, network.double(), {})
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert sorted(p.name for p in saved.parent.iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("name", bundled_models())
def test_bundled_models_load_and_are_small(name: str) -> None:
    functional = taufree.load_model(name)
    assert functional.name == name
    folder = Path(storage.__file__).parents[1] / "weights"
    assert sum((folder / f"{name}.{end}").stat().st_size for end in ("safetensors", "json")) < 5e6
