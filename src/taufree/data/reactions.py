"""Energy differences that chemistry asks for: barrier heights and interaction energies.

====== ======================================================================================
set    content
====== ======================================================================================
dbh24  12 reactions, forward and backward barriers: J. Zheng, Y. Zhao and D. G. Truhlar,
       J. Chem. Theory Comput. 5, 808 (2009), doi:10.1021/ct800568m
s22    22 weakly bound dimers less their monomers, geometries kept: P. Jurečka, J. Šponer,
       J. Černý and P. Hobza, Phys. Chem. Chem. Phys. 8, 1985 (2006), doi:10.1039/b600027d;
       energies of T. Takatani et al., J. Chem. Phys. 132, 144104 (2010)
====== ======================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ase.data import dbh24
from ase.data import s22 as dimers
from ase.units import kcal, mol

from taufree.data.systems import System

SETS = ("dbh24", "s22")


@dataclass(frozen=True)
class Reaction:
    """E = Σ coefficient · E(system); ``reference_kcal`` is the published energy, kcal/mol."""

    name: str
    collection: str
    terms: tuple[tuple[float, System], ...]
    reference_kcal: float

    @property
    def n_electrons(self) -> int:
        """Those of its largest system, which rule its cost."""
        return max(system.n_electrons for _, system in self.terms)


def reactions(collection: str, basis: str, parent: str) -> list[Reaction]:
    """Every reaction of a set of ``SETS``, its systems in one basis and for one parent."""
    return list({"dbh24": _barriers, "s22": _interactions}[collection](basis, parent))


def _barriers(basis: str, parent: str) -> Iterator[Reaction]:
    def system(name: str) -> System:
        short = name.removeprefix("dbh24_")
        atoms, charge = dbh24.create_dbh24_system(name), round(dbh24.get_dbh24_charge(name))
        options = {"charge": charge, "basis": basis, "parent": parent, "kind": "dbh24"}
        return System.from_ase(short, atoms, **options)

    entries: list[dict[str, Any]] = list(dbh24.dbh24_reaction_list.values())
    for entry in entries:
        top = system(entry["tst"])
        short = top.name.removeprefix("tst_").removeprefix("tst-")
        for direction, ends, height in (
            ("forward", entry["initial"], dbh24.get_dbh24_Vf(entry["tst"])),
            ("backward", entry["final"], dbh24.get_dbh24_Vb(entry["tst"])),
        ):
            terms = (1.0, top), *((-1.0, system(end)) for end in ends)
            yield Reaction(f"{short} {direction}", "dbh24", terms, height)


def _interactions(basis: str, parent: str) -> Iterator[Reaction]:
    for name in dimers.s22:
        atoms = dimers.create_s22_system(name)
        n_first, _ = dimers.get_number_of_dimer_atoms(name)
        pieces = {name: atoms, f"{name}.1": atoms[:n_first], f"{name}.2": atoms[n_first:]}
        dimer, *monomers = (
            System.from_ase(key, part, basis=basis, parent=parent, kind="s22")
            for key, part in pieces.items()
        )
        terms = (1.0, dimer), *((-1.0, monomer) for monomer in monomers)
        energy = dimers.get_interaction_energy_s22(name)
        yield Reaction(name, "s22", terms, energy / (kcal / mol))
