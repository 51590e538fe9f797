"""Skala's network with random weights: for timing."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor


def skala_network() -> Any:
    """Skala 1.1 (arXiv:2506.14665) with random weights; None if ``skala`` is not installed."""
    try:
        model = importlib.import_module("skala.functional.model")
    except ImportError:
        return None
    return model.SkalaFunctional(lmax=3, num_mid_layers=4, num_non_local_layers=3).eval()


def skala_features(arrays: dict[str, Tensor]) -> dict[Any, Tensor]:
    """Named arrays as the package ``skala`` wants them; names that it knows and no others."""
    feature = importlib.import_module("skala.features").Feature
    return {feature(name): array for name, array in arrays.items()}
