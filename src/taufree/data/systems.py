"""What can be calculated: named systems with geometry, charge, spin and basis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.collections import g2
from ase.units import Bohr


@dataclass(frozen=True)
class System:
    """One calculation of the parent: positions in bohr, spin = N↑ − N↓."""

    name: str
    symbols: tuple[str, ...]
    positions: tuple[tuple[float, float, float], ...]
    charge: int = 0
    spin: int = 0
    basis: str = "def2-tzvp"
    parent: str = "MS2"

    @classmethod
    def from_ase(cls, name: str, atoms: Atoms, **options: object) -> System:
        """``spin`` defaults to the sum of the initial magnetic moments."""
        positions = tuple(tuple(r) for r in (atoms.positions / Bohr).tolist())
        spin = int(round(abs(np.sum(atoms.get_initial_magnetic_moments()))))
        fields = {"spin": spin, **options}
        return cls(name, tuple(atoms.get_chemical_symbols()), positions, **fields)


def g2_systems() -> list[System]:
    """The 162 molecules and atoms of ``ase.collections.g2``."""
    return [System.from_ase(name, g2[name]) for name in g2.names]
