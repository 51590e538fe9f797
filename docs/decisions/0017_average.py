"""The bundled weights: the mean of those that a chain of runs began and ended with.

Run: python docs/decisions/0017_average.py FIRST LAST CONFIG OUT, each of the first two and OUT a
``.safetensors`` file; CONFIG is that of the last run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from taufree.model.storage import load_model, save_model
from taufree.training.config import read_config
from taufree.training.loop import load_densities, validate
from taufree.training.losses import Losses

SHARE = 0.5
"""Of the last."""


def main() -> None:
    """Average, validate, save with the card of the last run."""
    first, last, config_path, out = map(Path, sys.argv[1:5])
    network, other = load_model(first).network, load_model(last).network.state_dict()
    state = {k: torch.lerp(v, other[k], SHARE) for k, v in network.state_dict().items()}
    network.load_state_dict(state)
    config = read_config(config_path)
    densities = load_densities(config, "validation", torch.device("cpu"))
    cards = [json.loads(path.with_suffix(".json").read_text("utf-8")) for path in (first, last)]
    card = cards[1]
    kept = ("training", "commit", "data", "elements", "date")
    origin = ("command", "commit", "data", "date")
    save_model(
        out,
        network,
        {
            "command": " ".join(["python", *sys.argv]),
            **{key: card[key] for key in kept},
            "metrics": {"validation": validate(Losses(network, config), densities)},
            "averaged": [{key: each[key] for key in origin} for each in cards],
            "note": f"weights are the mean of {first} and {last} (decision 0017)",
        },
    )


if __name__ == "__main__":
    main()
