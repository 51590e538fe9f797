"""∫|Δe_x| per electron of trained transformers on the same chunks of training densities.

Run: python docs/decisions/0009_wider.py CONFIG WEIGHTS [WEIGHTS ...]
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean

import torch

from taufree.comparators import training
from taufree.comparators.trained import load_comparator
from taufree.physics.descriptors import lda_exchange
from taufree.training.config import read_config

CHUNKS = 120


@torch.no_grad()
def main(config: str, *weights: str) -> None:
    """Means over chunks, routed by arg-max, drawn like those of a training step."""
    settings = read_config(Path(config), training.ComparatorConfig)
    densities = training.load_densities(settings, torch.device("cpu"))
    for path in weights:
        network = load_comparator(Path(path)).network
        generator = torch.Generator().manual_seed(0)
        errors = []
        for _ in range(CHUNKS):
            points, electrons = training.draw(settings, densities, generator)
            rho, grad_rho, tau, w, coords, exc, _ = points
            features, partial = network.inputs(rho, grad_rho, tau, w)  # type: ignore[operator]
            chosen = network.route(features, partial, coords.float()).argmax(1)  # type: ignore[operator]
            found = network(features, coords.float(), chosen).double() * lda_exchange(rho)
            errors.append(float((w * (found - exc).abs()).sum() / electrons))
        print(f"{path}: {1e3 * mean(errors):.2f} mHa per electron", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
