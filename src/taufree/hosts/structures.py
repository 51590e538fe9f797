"""From a structure file to ASE atoms, and from those to PySCF's molecule or cell."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.geometry import get_distances
from ase.io import read
from pyscf import gto
from pyscf.pbc import gto as pbc_gto

from taufree.errors import UnsupportedError, UserError

SHORTEST_DISTANCE_ANGSTROM = 0.3  # H2 has 0.74; anything shorter is a slip in the file
MOLECULAR_BASIS = "def2-tzvp"
CRYSTAL_BASIS = "gth-dzvp-molopt-sr"
WHOLE = 1e-3
"""What sums of initial charges and moments may miss a whole number by: digits of a file."""
DIFFUSE = 0.1
"""Exponent (bohr⁻²) below which basis functions of all-electron crystals are left out."""
PSEUDOPOTENTIALS = "gth-pbe"
CUTOFF_OF_EXPONENT = 50.0
"""Plane-wave cutoff of the uniform grid (Ha) where the sharpest exponent is 1 bohr⁻²: from there on
the energy of silicon changes by less than 5 µHa an atom."""
DENSEST_GRID = 4000.0
"""Points per bohr³ from which on a uniform grid is refused: silicon has 75, oxides some 1,800."""


def read_structure(path: Path) -> Atoms:
    """Read a structure file (xyz, extxyz, cif, POSCAR, ...); of several frames the last.

    Raises
    ------
    UserError
        Not a file, not a structure, no atoms in it, or two atoms in one place.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: give the path of a structure, such as an xyz file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            atoms = read(path, index=-1, do_not_split_by_at_sign=True)
    except Exception as error:  # ASE's readers raise whatever the file makes them stumble over
        if isinstance(error, OSError) and error.errno:  # no permission, a broken disk
            raise
        reason = f" ({error})" if str(error).strip() else ""
        raise UserError(
            f"{path} cannot be read as a structure{reason}: "
            "check the element symbols and the format (xyz, extxyz, cif, POSCAR, ...)."
        ) from error
    assert isinstance(atoms, Atoms)  # with one index ASE gives one frame
    if len(atoms) == 0:
        raise UserError(f"{path} holds no atoms: check how the file was written.")
    if (atoms.numbers == 0).any():
        raise UserError(f"{path} holds the dummy atom X: remove it, or name the element.")
    _refuse_impossible_positions(atoms, path)
    return atoms


def _refuse_impossible_positions(atoms: Atoms, path: Path) -> None:
    if not np.isfinite(atoms.positions).all():
        raise UserError(f"{path} holds a position that is not a finite number: check the file.")
    distances = get_distances(atoms.positions, cell=atoms.cell, pbc=atoms.pbc)[1]
    np.fill_diagonal(distances, np.inf)
    i, j = np.unravel_index(distances.argmin(), distances.shape)
    if distances[i, j] < SHORTEST_DISTANCE_ANGSTROM:
        raise UserError(
            f"{path}: atoms {i + 1} and {j + 1} are {distances[i, j]:.2f} Å apart: "
            "check that the positions are in ångström and that no atom stands twice."
        )


def charge_and_spin(atoms: Atoms, charge: int | None, spin: int | None) -> tuple[int, int]:
    """Total charge and 2S: as given or, for None, the sums over the atoms.

    Raises
    ------
    UnsupportedError
        Such a sum is not a whole number, or moments have both signs.
    """
    total: float = atoms.get_initial_charges().sum() if charge is None else charge
    moments = atoms.get_initial_magnetic_moments()
    moment: float = abs(moments.sum()) if spin is None else spin
    if spin is None and moments.max(initial=0) >= 0.5 and moments.min(initial=0) <= -0.5:
        raise UnsupportedError(
            "initial magnetic moments of both signs are not available: remove them (or "
            "give spin=), or converge a broken-symmetry UKS in PySCF."
        )
    return _whole(total, "total charge", "charge"), _whole(moment, "total moment", "spin")


def _whole(value: float, what: str, option: str) -> int:
    if abs(value - round(value)) > WHOLE:
        raise UnsupportedError(
            f"a {what} of {value:g} is not available: give a whole number, {option}= or --{option}."
        )
    return round(value)


def molecule(atoms: Atoms, basis: str, charge: int = 0, spin: int = 0) -> gto.Mole:
    """PySCF's molecule, with the effective core potentials that belong to the basis.

    Parameters
    ----------
    atoms : Atoms
        Positions in ångström; the cell is ignored.
    basis : str
        A basis that PySCF has, or the path of one in NWChem's format.
    charge, spin : int
        Total charge, and 2S = N↑ − N↓.

    Raises
    ------
    UserError
        The basis lacks an element, or the electrons cannot have this charge and spin.
    """
    symbols = atoms.get_chemical_symbols()
    core_potentials = _core_potentials(set(symbols), basis)
    n_core = sum(core_potentials[s][0] for s in symbols if s in core_potentials)
    n_electrons = int(atoms.numbers.sum()) - n_core - charge
    _refuse_impossible_electrons(n_electrons, charge, spin)
    mol = gto.M(
        atom=list(zip(symbols, atoms.positions.tolist(), strict=True)),
        unit="Angstrom",
        basis=basis,  # by name, so that density fitting finds the auxiliary basis made for it
        ecp=core_potentials,
        charge=charge,
        spin=spin,
        verbose=0,
    )
    if max(mol.nelec) > mol.nao:
        raise UserError(
            f"basis {basis!r} has {mol.nao} orbitals for {max(mol.nelec)} electrons of one spin: "
            "choose a larger --basis, or check --charge and --spin."
        )
    return mol


def crystal(atoms: Atoms, basis: str, spin: int = 0, smeared: bool = False) -> pbc_gto.Cell:
    """PySCF's cell: all electrons, or GTH pseudopotentials when the basis is made for them.

    Parameters
    ----------
    atoms : Atoms
        Positions and cell in ångström, periodic in three directions.
    basis : str
        A GTH basis of PySCF's (``"gth-dzvp-molopt-sr"``) brings the pseudopotentials gth-pbe. Of
        any other, functions with exponents below 0.1 are left out: they overlap with their images
        until a crystal's basis is linearly dependent, and atoms next door stand in for them.
    spin : int
        2S = N↑ − N↓ of one cell.
    smeared : bool
        Bands may be filled in part, so that an odd number of electrons is no trouble.

    Raises
    ------
    UserError
        The basis lacks an element, or the electrons cannot have this spin.
    UnsupportedError
        A slab or a wire.
    """
    if not atoms.pbc.all():
        raise UnsupportedError(
            f"the structure is periodic along {atoms.pbc.sum()} of 3 directions: make it periodic "
            "in all three, with 10 Å or more of vacuum across a slab or a wire, and one k-point "
            "there."
        )
    symbols = atoms.get_chemical_symbols()
    cell = pbc_gto.Cell(
        a=atoms.cell.array,
        atom=list(zip(symbols, atoms.positions.tolist(), strict=True)),
        unit="Angstrom",
        basis=basis,
        spin=None,  # any, until the electrons are counted
        verbose=0,
    )
    if is_gth(basis):
        _refuse_missing_gth(set(symbols), basis)
        cell.pseudo = PSEUDOPOTENTIALS
    else:
        cell.ecp = _core_potentials(set(symbols), basis)
        cell.exp_to_discard = DIFFUSE
    cell.build(dump_input=False, parse_arg=False)
    if cell.pseudo:
        sharpest = max(cell.bas_exp(i).max() for i in range(cell.nbas))
        mesh = cell.cutoff_to_mesh(CUTOFF_OF_EXPONENT * sharpest)
        cell.mesh = np.minimum(cell.mesh, mesh)
        if cell.mesh.prod() > DENSEST_GRID * cell.vol:
            raise UserError(
                f"basis {basis!r} needs a uniform grid of {'×'.join(map(str, cell.mesh))} points: "
                "choose --basis def2-svp or another for all electrons."
            )
    if spin or not smeared:
        _refuse_impossible_electrons(cell.nelectron, 0, spin)
        cell.spin = spin
    if cell.nelectron + spin > 2 * cell.nao:
        raise UserError(
            f"basis {basis!r} has {cell.nao} orbitals in the cell for {cell.nelectron} electrons: "
            "choose a larger --basis, or check --spin."
        )
    return cell


def is_gth(basis: str) -> bool:
    """Whether a basis is made for GTH pseudopotentials."""
    return basis.lower().startswith("gth")


def _refuse_missing_gth(symbols: set[str], basis: str) -> None:
    for symbol in sorted(symbols):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                pbc_gto.basis.load(basis, symbol)
                pbc_gto.pseudo.load(PSEUDOPOTENTIALS, symbol)
            except Exception as error:  # BasisNotFoundError, or what a bad file runs into
                raise UserError(
                    f"no basis {basis!r} with pseudopotential {PSEUDOPOTENTIALS} for {symbol}: "
                    f"choose --basis {CRYSTAL_BASIS}, or one for all electrons such as def2-svp."
                ) from error


def _core_potentials(symbols: set[str], basis: str) -> dict[str, Any]:
    """Effective core potentials that come with the basis; all elements must be in the basis."""
    core_potentials = {}
    for symbol in sorted(symbols):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                gto.basis.load(basis, symbol)
            except Exception as error:  # BasisNotFoundError, or what a bad basis file runs into
                raise UserError(
                    f"no basis {basis!r} for {symbol}: choose --basis among PySCF's "
                    "(def2-svp, def2-tzvp and def2-qzvp cover most elements to Rn)."
                ) from error
            try:
                core_potential = gto.basis.load_ecp(basis, symbol)
            except RuntimeError:  # a basis that comes without any
                continue
        if core_potential:
            core_potentials[symbol] = core_potential
    return core_potentials


def _refuse_impossible_electrons(n_electrons: int, charge: int, spin: int) -> None:
    if n_electrons < 1:
        raise UserError(f"charge {charge} leaves no electrons: check --charge.")
    if spin < 0 or spin > n_electrons:
        raise UserError(
            f"{n_electrons} electrons cannot have 2S = {spin}: --spin is N↑ − N↓, "
            f"between 0 and {n_electrons}."
        )
    if (n_electrons - spin) % 2:
        parity = "an odd number (1 for a doublet)" if n_electrons % 2 else "even (0 for a singlet)"
        raise UserError(
            f"{n_electrons} electrons (charge {charge}) cannot have 2S = {spin}: "
            f"--spin must be {parity}, or --charge is wrong."
        )
