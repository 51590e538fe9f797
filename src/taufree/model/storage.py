"""Weights on disk: ``NAME.safetensors`` beside ``NAME.json``, never a pickle."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from taufree.errors import WeightsError
from taufree.files import write_atomic
from taufree.functional import Functional
from taufree.model.config import ModelConfig
from taufree.model.network import Network

FORMAT = 1


def save_model(
    path: Path, network: nn.Module, card: dict[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    """Write ``path`` (.safetensors) and the JSON beside it, each whole or not at all.

    ``card`` is what the model says of itself: data checksum, command, metrics, and the
    ``elements`` of its training data and those it knows with ``pseudopotentials``, beyond which a
    run warns. The commit of the code and the date are added. Weights are rounded to ``dtype``.
    """
    git = ["git", "describe", "--always", "--dirty"]
    folder = Path(__file__).parent
    commit = subprocess.run(git, capture_output=True, text=True, check=False, cwd=folder)
    state = network.state_dict()
    blob = save({k: v.detach().to("cpu", dtype).contiguous() for k, v in state.items()})
    text = json.dumps(
        {
            "format": FORMAT,
            "config": network.config.model_dump(),  # type: ignore[union-attr, operator]
            "sha256": hashlib.sha256(blob).hexdigest(),
            "commit": commit.stdout.strip() or "unknown",
            "date": time.strftime("%Y-%m-%d"),
            **card,
        },
        indent=1,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, content in ((path, blob), (path.with_suffix(".json"), text.encode())):
        write_atomic(target, content)


def bundled_models() -> list[str]:
    """Names of the models that the package ships."""
    names = (f.name for f in files("taufree").joinpath("weights").iterdir())
    return sorted(n.removesuffix(".safetensors") for n in names if n.endswith(".safetensors"))


def load_model(model: str | Path | Functional) -> Functional:
    """A functional by the name of a bundled model, or from a ``.safetensors`` or ``.json`` path.

    A loaded one is returned as it is.

    Raises
    ------
    WeightsError
        No such model, a file that does not match its checksum, or another architecture's weights.
    """
    if isinstance(model, Functional):
        return model
    path = weights_file(model)
    blob, card = read_weights(path)
    try:
        network = Network(ModelConfig.model_validate(card["config"]))
        network.load_state_dict(load(blob))
    except (KeyError, ValidationError, SafetensorError, RuntimeError) as error:
        raise WeightsError(
            f"{path} was made for another architecture or version of taufree; retrain or "
            f"install the version that made it ({type(error).__name__})."
        ) from error
    trained = (card.get(key, ()) for key in ("elements", "pseudopotentials"))
    return Functional(network, path.stem, *trained)


def weights_file(name_or_path: str | Path) -> Path:
    """Where the weights of a bundled model, or of a path as `load_model` takes it, are.

    Raises
    ------
    WeightsError
        No such file.
    """
    name = str(name_or_path)
    if name in bundled_models():
        path = Path(str(files("taufree").joinpath("weights", f"{name}.safetensors")))
    else:
        path = Path(name).with_suffix(".safetensors")
    if not path.is_file():
        known = ", ".join(bundled_models()) or "none"
        raise WeightsError(f"No model {name!r}: give a .safetensors file or a name of: {known}.")
    return path


def read_weights(path: Path) -> tuple[bytes, dict[str, Any]]:
    """A weights file, its checksum verified, and the JSON beside it."""
    blob, card = path.read_bytes(), read_card(path)
    if hashlib.sha256(blob).hexdigest() != card.get("sha256"):
        raise WeightsError(f"{path} does not match the checksum in its JSON; copy both anew.")
    return blob, card


def read_card(path: Path) -> dict[str, Any]:
    """The JSON beside a weights file."""
    card_path = path.with_suffix(".json")
    try:
        card = json.loads(card_path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{card_path} is missing or unreadable; copy it beside {path}."
        ) from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise WeightsError(f"{card_path} is not a taufree model card of format {FORMAT}.")
    return card


def origin(path: Path) -> dict[str, Any]:
    """What made a weights file; of those it started from the same, and so on."""
    card = read_card(path)
    what = ("command", "training", "start", "commit", "data", "systems", "date", "sha256")
    return {key: card[key] for key in what if key in card}


def fingerprint(functional: Functional) -> str:
    """SHA-256 over a model's configuration and parameters."""
    return network_fingerprint(functional.network)


def network_fingerprint(network: Any) -> str:
    """The same of a module with a ``config``."""
    total = hashlib.sha256(network.config.model_dump_json().encode())
    for name, tensor in sorted(network.state_dict().items()):
        total.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return total.hexdigest()
