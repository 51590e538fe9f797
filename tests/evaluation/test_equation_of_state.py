from __future__ import annotations

import numpy as np
import pytest
from ase.eos import birchmurnaghan

from taufree.evaluation.equation_of_state import EOS, GPA_PER_ATOMIC, RANGE, delta, fit

SILICON = EOS(volume=270.0, energy=-578.0, bulk_modulus=0.0033, derivative=4.2, rms=0.0)
VOLUMES = [share * SILICON.volume for share in (0.88, 0.94, 1.0, 1.06)]


def energies(eos: EOS) -> list[float]:
    parameters = (eos.energy, eos.bulk_modulus, eos.derivative, eos.volume)
    return [float(birchmurnaghan(v, *parameters)) for v in VOLUMES]


def test_fit_gives_back_the_curve() -> None:
    found = fit(VOLUMES, energies(SILICON))
    assert found is not None
    assert vars(found) == pytest.approx(vars(SILICON), rel=1e-4, abs=1e-9)
    # 1 Ha/bohr³ = 29421 GPa (CODATA: Eh/a0³ = 2.9421e13 Pa)
    assert pytest.approx(29421.0, rel=1e-4) == GPA_PER_ATOMIC


def test_no_minimum_is_no_curve() -> None:
    rising = [0.1 * v for v in VOLUMES]
    assert fit(VOLUMES, rising) is None
    assert fit(VOLUMES, [-e for e in energies(SILICON)]) is None


def test_delta_of_a_shifted_minimum() -> None:
    other = EOS(SILICON.volume * 1.01, -1.0, SILICON.bulk_modulus, SILICON.derivative, 0.0)
    assert delta(SILICON, SILICON) == 0
    assert delta(SILICON, other) == pytest.approx(delta(other, SILICON))
    # two parabolas ½ B (V − V₀)²/V₀, δ apart: their difference is B δ (V − mean)/V₀, its
    # root mean square over ±6% is B δ RANGE/√3
    expected = SILICON.bulk_modulus * 0.01 * SILICON.volume * RANGE / np.sqrt(3)
    assert delta(SILICON, other) == pytest.approx(expected, rel=0.05)
