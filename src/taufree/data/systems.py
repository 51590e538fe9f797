"""What can be calculated: named systems with geometry, charge, spin, basis and external field.

========== ==================================================================================
kind       content
========== ==================================================================================
g2         the 162 atoms and molecules of ``ase.collections.g2``
atoms      the neutral atoms up to Kr that g2 lacks, in their Hund ground states
ions       monatomic ions and small molecular ions (bound anions only)
diatomics  diatomics at experimental bond lengths: the elements that g2 has few of, and K to Kr
molecules  polyatomics of the same elements
compounds  663 small compounds from SMILES, at force-field geometries
dimers     weakly bound dimers, none of them in the S22 set (that one is for evaluation)
pairs      two g2 molecules in contact, in random orientations, see `taufree.data.arranged`
stretched  g2 molecules of the training split, all distances scaled
distorted  g2 molecules of the training split, every atom displaced at random
twisted    the same turned about a bond, ``parted`` with one bond lengthened
transfers  an atom between two radicals
small      g2 molecules and atoms to Kr in a smaller basis, that of crystals
fields     training molecules in a weak uniform electric field
crystals   all-electron crystals, see `taufree.data.crystals`; ``crystals-gth``: most of
           them with Goedecker-Teter-Hutter pseudopotentials
========== ==================================================================================
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import numpy as np
from ase import Atoms
from ase.collections import g2
from ase.data import atomic_numbers, chemical_symbols, ground_state_magnetic_moments
from ase.formula import Formula
from ase.units import Bohr

KINDS = (
    "g2", "atoms", "ions", "diatomics", "molecules", "compounds", "dimers", "pairs",
    "stretched", "distorted", "twisted", "parted", "transfers", "small", "fields", "crystals",
    "crystals-gth",
)  # fmt: skip
STRETCHED = (
    "H2", "LiH", "CH4", "NH3", "H2O", "HF", "HCl", "N2", "O2", "F2", "CO2", "HCN", "SH2", "SiH4",
    "PH3", "AlF3",
)  # fmt: skip
STRETCHES = (0.9, 1.15)
DISTORTION = 0.08  # ångström, of each coordinate
MOST_ELECTRONS = 40  # of a distorted molecule
IN_FIELD = ("H2", "LiH", "CH4", "NH3", "H2O", "HF", "HCl", "N2", "CO2", "HCN", "C2H6", "SiH4")
FIELD = 0.01  # a.u.: a permanent dipole's field at some 5 bohr
DEFAULT = "def2-tzvp"
SMALL = "def2-svp"
DIFFUSE = "def2-tzvpd"  # anions and van der Waals tails


@dataclass(frozen=True)
class Periodicity:
    """How a crystal repeats, and what its calculation needs beyond a molecule's.

    ``vectors`` are the rows of the cell, bohr; ``mesh`` the k-points along each, Γ among them;
    ``smearing`` the width of Gaussian occupations, hartree (0: none). ``moments``, of each atom in
    μB, start a spin-polarized calculation; none: closed shells. ``core_electrons`` are those that
    the pseudopotential stands for; None: all-electron. Orbitals with smaller exponents than
    ``exp_to_discard`` are left out of the basis: in a crystal they are nearly linearly dependent.
    """

    vectors: tuple[tuple[float, float, float], ...]
    mesh: tuple[int, int, int]
    smearing: float = 0.0
    moments: tuple[float, ...] = ()
    pseudo: str | None = None
    core_electrons: int = 0
    exp_to_discard: float = 0.1


@dataclass(frozen=True)
class System:
    """One calculation of the parent: positions in bohr, spin = N↑ − N↓, field in atomic units.

    A crystal has a ``period``; its spin is found by the calculation, and ``spin`` stays 0.
    """

    name: str
    symbols: tuple[str, ...]
    positions: tuple[tuple[float, float, float], ...]
    charge: int = 0
    spin: int = 0
    basis: str = DEFAULT
    parent: str = "MS2"
    kind: str = "g2"
    field: tuple[float, float, float] = (0.0, 0.0, 0.0)
    period: Periodicity | None = None

    @classmethod
    def from_ase(cls, name: str, atoms: Atoms, **options: Any) -> System:
        """``spin`` defaults to the sum of the initial magnetic moments."""
        positions = tuple((x, y, z) for x, y, z in (atoms.positions / Bohr).tolist())
        spin = round(abs(float(np.sum(atoms.get_initial_magnetic_moments()))))
        fields = {"spin": spin, **options}
        return cls(name, tuple(atoms.symbols), positions, **fields)

    @property
    def formula(self) -> str:
        """Hill formula as ASE writes it, with the charge of an ion: ``CH2O``, ``Na+``, ``Mg+2``.

        A crystal's is that of its composition, marked as a solid: ``FLi(s)``, ``C(s)``.
        """
        if self.period:
            return Formula.from_list(list(self.symbols)).reduce()[0].format("hill") + "(s)"
        formula = Formula.from_list(list(self.symbols)).format("hill")
        if not self.charge:
            return formula
        size = str(abs(self.charge)) if abs(self.charge) > 1 else ""
        return formula + ("+" if self.charge > 0 else "-") + size

    @property
    def numbers(self) -> tuple[int, ...]:
        """Atomic numbers."""
        return tuple(atomic_numbers[symbol] for symbol in self.symbols)

    @property
    def n_electrons(self) -> int:
        return sum(self.numbers) - self.charge - self.core_electrons

    @property
    def core_electrons(self) -> int:
        """Electrons that a pseudopotential stands for."""
        return self.period.core_electrons if self.period else 0

    @property
    def cost(self) -> int:
        """Rough effort of a calculation, to begin with the large ones: so they pack best."""
        return self.n_electrons * len(self.symbols) * (2 if self.polarized else 1)

    @property
    def polarized(self) -> bool:
        """Whether spin-up and spin-down densities differ."""
        return bool(self.spin or (self.period and self.period.moments))


@cache
def registry() -> MappingProxyType[str, System]:
    """Every system by its name, in the order of ``KINDS``."""
    from taufree.data.arranged import arranged  # which build on this module
    from taufree.data.crystals import crystals

    systems = [
        *g2_systems(), *_atoms(), *_diatomics(), *_tabulated(), *_compounds(), *_stretched(),
        *_distorted(), *arranged(), *_small(), *_in_fields(), *crystals(),
    ]  # fmt: skip
    systems.sort(key=lambda system: KINDS.index(system.kind))
    by_name = {system.name: system for system in systems}
    if len(by_name) < len(systems):
        raise ValueError("two systems share a name")
    return MappingProxyType(by_name)


def g2_systems() -> list[System]:
    """List the 162 molecules and atoms of ``ase.collections.g2``."""
    return [_g2(name) for name in g2.names]


def _g2(name: str) -> System:
    return System.from_ase(name, g2[name])


def _atoms() -> Iterator[System]:
    for z in range(1, 37):
        symbol = chemical_symbols[z]
        if symbol not in g2.names:
            spin = int(ground_state_magnetic_moments[z])
            yield System(symbol, (symbol,), ((0.0, 0.0, 0.0),), spin=spin, kind="atoms")


def _diatomics() -> Iterator[System]:
    table = files("taufree.data").joinpath("diatomics.csv").read_text("utf-8").splitlines()
    for row in csv.DictReader(line for line in table if not line.startswith("#")):
        bond = float(row["r_angstrom"]) / Bohr
        positions = ((0.0, 0.0, 0.0), (0.0, 0.0, bond))
        symbols = (row["first"], row["second"])
        yield System(row["name"], symbols, positions, spin=int(row["spin"]), kind="diatomics")


def _tabulated() -> Iterator[System]:
    """Ions, polyatomics and dimers of ``geometries.json`` (in ångström there)."""
    table = json.loads(files("taufree.data").joinpath("geometries.json").read_text("utf-8"))
    for kind, entries in table.items():
        for name, entry in entries.items():
            charge = entry.get("charge", 0)
            options: dict[str, Any] = {"charge": charge, "spin": entry.get("spin", 0)}
            if charge < 0 or kind == "dimers":
                options["basis"] = DIFFUSE
            atoms = Atoms(entry["symbols"], entry["positions"])
            yield System.from_ase(name, atoms, kind=kind, **options)


def _compounds() -> Iterator[System]:
    """`docs/decisions/0011_compounds.py` wrote the table (in ångström there)."""
    table = json.loads(files("taufree.data").joinpath("compounds.json").read_text("utf-8"))
    for name, entry in table.items():
        atoms = Atoms(entry["symbols"], entry["positions"])
        options = {"spin": entry["spin"], "basis": entry["basis"], "kind": "compounds"}
        yield System.from_ase(f"smiles {name}", atoms, **options)


def _stretched() -> Iterator[System]:
    for name in STRETCHED:
        for factor in STRETCHES:
            atoms = g2[name].copy()
            atoms.positions *= factor
            yield System.from_ase(f"{name}@{factor}", atoms, kind="stretched")


def _distorted() -> Iterator[System]:
    from taufree.data.splits import split_of  # which builds on this module

    for system in g2_systems():
        if split_of(system.formula) != "train" or len(system.symbols) == 1:
            continue
        if system.n_electrons <= MOST_ELECTRONS:
            atoms = g2[system.name].copy()
            atoms.rattle(DISTORTION, seed=len(system.name) + system.n_electrons)
            yield System.from_ase(f"{system.name}@distorted", atoms, kind="distorted")


def _small() -> Iterator[System]:
    for system in (*g2_systems(), *_atoms()):
        yield replace(system, name=f"{system.name}@{SMALL}", basis=SMALL, kind="small")


def _in_fields() -> Iterator[System]:
    direction = np.array([0.36, 0.48, 0.80])  # along no bond or mirror plane of the g2 geometries
    x, y, z = (FIELD * direction).tolist()
    for name in IN_FIELD:
        yield replace(_g2(name), name=f"{name}@field", kind="fields", field=(x, y, z))
