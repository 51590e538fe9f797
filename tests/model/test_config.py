"""Sizes that the kernels cannot serve are refused when the configuration is read."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from taufree.model.config import MAX_ARGUMENT, ModelConfig


@pytest.mark.parametrize("n_radial", [(4, 5, 1), (4, 1, 5), (4, 2, 0), (4, 2)])
def test_radial_functions_of_each_l(n_radial: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="n_radial"):
        ModelConfig(n_radial=n_radial)  # type: ignore[arg-type]


def test_broadest_gaussian_fits_the_cutoff() -> None:
    """The kernels' series for exp(−a₀d²), eight terms of the 64th root, is accurate up to there."""
    with pytest.raises(ValidationError, match="cutoff"):
        ModelConfig(min_exponent=0.2, cutoff=9.0)
    x = -MAX_ARGUMENT / 64
    series = sum(x**k / math.factorial(k) for k in range(9)) ** 64
    assert series == pytest.approx(math.exp(-MAX_ARGUMENT), rel=1e-11)
