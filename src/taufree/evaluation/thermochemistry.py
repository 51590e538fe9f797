"""Atomization energies: which systems have one, and of which atoms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from taufree.data.systems import System, registry

ATOMIZED = ("g2", "diatomics", "molecules")
"""Kinds of systems whose atomization energy is looked at."""


def atoms_of(system: System) -> Counter[str]:
    """How many atoms of each element a molecule falls apart into; none for other systems."""
    if system.kind not in ATOMIZED or len(system.symbols) == 1 or system.charge:
        return Counter()
    return Counter(system.symbols)


def atom(symbol: str) -> System:
    """The registered free atom of an element, in its Hund ground state."""
    return registry()[symbol]


def atomization(energy: float, atoms: Mapping[str, int], of_atoms: Mapping[str, float]) -> float:
    """Energy of the free atoms less that of the molecule."""
    return sum(n * of_atoms[symbol] for symbol, n in atoms.items()) - energy
