"""Energy-volume curves: the equation of state through points, and how far two of them are apart."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.eos import EquationOfState, birchmurnaghan
from ase.units import Bohr, GPa, Hartree

GPA_PER_ATOMIC = Hartree / Bohr**3 / GPa
RANGE = 0.06
"""The two curves are compared from 94% to 106% of their mean volume."""
POINTS = 201
"""Of the quadrature over that range; the integrand is smooth."""


@dataclass(frozen=True)
class EOS:
    """Third-order Birch-Murnaghan equation of state; atomic units, per cell.

    ``energy`` is that of the minimum at ``volume``, ``rms`` the fit's deviation from the points.
    """

    volume: float
    energy: float
    bulk_modulus: float
    derivative: float
    rms: float

    def __call__(self, volumes: np.ndarray) -> np.ndarray:
        """Energies at ``volumes`` above the minimum."""
        return birchmurnaghan(volumes, 0.0, self.bulk_modulus, self.derivative, self.volume)


def fit(volumes: Sequence[float], energies: Sequence[float]) -> EOS | None:
    """Curve through points by ASE; None where they have no minimum in or near their range."""
    v, e = np.array(volumes), np.array(energies)
    shift = e.mean()
    equation = EquationOfState(v, e - shift, eos="birchmurnaghan")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the parameters' covariance, which nobody asks for
            volume, energy, bulk_modulus = equation.fit(warn=False)
    except RuntimeError:  # SciPy finds no parameters
        return None
    margin = RANGE * v.mean()
    if not (bulk_modulus > 0 and v.min() - margin < volume < v.max() + margin):
        return None
    derivative = equation.eos_parameters[2]
    deviation = birchmurnaghan(v, energy, bulk_modulus, derivative, volume) - (e - shift)
    rms = float(np.sqrt(np.mean(deviation**2)))
    return EOS(float(volume), float(energy + shift), float(bulk_modulus), float(derivative), rms)


def delta(first: EOS, second: EOS) -> float:
    """Δ = √(∫ [E₂(V) − E₁(V)]² dV / ∫ dV), each curve above its own minimum; hartree per cell.

    The integral is over ±6% of the mean of both equilibrium volumes: K. Lejaeghere,
    V. Van Speybroeck, G. Van Oost, S. Cottenier, Crit. Rev. Solid State Mater. Sci. 39, 1 (2014),
    doi:10.1080/10408436.2013.772503.
    """
    mean = (first.volume + second.volume) / 2
    volumes = np.linspace((1 - RANGE) * mean, (1 + RANGE) * mean, POINTS)
    squared = (second(volumes) - first(volumes)) ** 2
    return float(np.sqrt(np.trapezoid(squared, volumes) / np.ptp(volumes)))
