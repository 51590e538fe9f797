"""Seconds a training step of a comparator takes, by width.

Run: python docs/decisions/0009_widths.py configs/published.toml 64 128 256 512
"""

import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from taufree.comparators import training
from taufree.training.config import read_config

REPEATS = 5


def main(path: str, *widths: str) -> None:
    """Median of five steps on the densities in electric fields, optimizer left out."""
    config = read_config(Path(path), training.ComparatorConfig)
    config = config.model_copy(update={"kinds": ("fields",)})
    densities = training.load_densities(config, torch.device("cpu"))
    for width in map(int, widths):
        sizes = {**config.architecture.network, "width": width}
        network = config.architecture.model_copy(update={"network": sizes}).build()
        generator = torch.Generator().manual_seed(0)
        seconds = []
        for _ in range(REPEATS + 1):
            start = perf_counter()
            loss, _ = training.losses(
                network, *training.draw(config, densities, generator), generator
            )
            loss.backward()
            seconds.append(perf_counter() - start)
        n = sum(p.numel() for p in network.parameters())
        print(f"width {width}: {n:,} parameters, {median(seconds[1:]):.2f} s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
