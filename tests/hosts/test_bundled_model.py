"""What the shipped weights must do on real molecules, measured beside the parent's own numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk
from numpy.typing import NDArray
from pyscf import dft, gto
from pyscf.dft import numint

import taufree
from networks import random_rotation
from reference import water_molecule
from taufree.functional import Functional
from taufree.hosts import atomic_orbitals
from taufree.hosts.single_point import Settings, mean_field
from tolerances import (
    FINITE_DIFFERENCE,
    GRID_PER_ATOM,
    ROTATION,
    SAME_INTEGRAL,
    SAME_INTEGRAL_SINGLE,
    SIZE_CONSISTENCY,
)

Array = NDArray[np.float64]
BASIS = "def2-svp"


@dataclass
class Integrals:
    """E_xc of one density matrix, by the surrogate and by the parent, on the same grid."""

    surrogate: float
    parent: float

    def __sub__(self, other: Integrals) -> Integrals:
        return Integrals(self.surrogate - other.surrogate, self.parent - other.parent)


@pytest.fixture(scope="module")
def functional() -> Functional:
    return taufree.load_model("ms2")


def peroxide(turn: Array | None = None, shift: float = 0.0) -> gto.Mole:
    """H2O2, which no rotation or reflection maps onto itself but one C2; turned, moved (bohr)."""
    atoms = "O 0 0.7375 -0.0528; O 0 -0.7375 -0.0528; H 0.819 0.8170 0.4220; H -0.819 -0.817 0.422"
    mol = gto.M(atom=atoms, basis=BASIS, verbose=0)
    turn = np.eye(3) if turn is None else turn
    return mol.set_geom_(mol.atom_coords() @ turn + shift, unit="Bohr", inplace=False)


def hartree_fock_matrix(mol: gto.Mole) -> Array:
    """A density that knows no grid: moves with the molecule to 1e-9."""
    return np.array(mol.RHF().density_fit().run(conv_tol=1e-11).make_rdm1())


def integrals(functional: Functional, mol: gto.Mole, dm: Array, level: int = 3) -> Integrals:
    mf = dft.RKS(mol)
    mf.grids.level = level
    mf = taufree.deorbitalize(mf, functional)
    surrogate = mf._numint.nr_rks(mol, mf.grids, mf.xc, dm)[1]
    return Integrals(surrogate, numint.NumInt().nr_rks(mol, mf.grids, "MS2", dm)[1])


def noise(functional: Functional, turn: Array | None, shift: float) -> Integrals:
    """What turning and moving H2O2 changes on PySCF's default grid."""
    usual = integrals(functional, mol := peroxide(), hartree_fock_matrix(mol))
    moved = peroxide(turn, shift)
    return integrals(functional, moved, hartree_fock_matrix(moved)) - usual


def test_moving_a_molecule(functional: Functional) -> None:
    change = noise(functional, None, 7.3)
    assert abs(change.surrogate) <= abs(change.parent) + ROTATION


def test_turning_a_molecule(functional: Functional) -> None:
    """No noisier than the parent on PySCF's default grid."""
    turns = [random_rotation(torch.Generator().manual_seed(k)).numpy() for k in range(1, 7)]
    changes = [noise(functional, turn, 0.0) for turn in turns]
    worst = max(abs(c.surrogate) - abs(c.parent) for c in changes)
    assert worst <= ROTATION


def test_finer_grids(functional: Functional) -> None:
    dm = hartree_fock_matrix(mol := peroxide())
    change = integrals(functional, mol, dm, 5) - integrals(functional, mol, dm, 3)
    assert abs(change.surrogate) <= abs(change.parent) + GRID_PER_ATOM * mol.natm


def converged_energy(functional: Functional, mol: gto.Mole) -> float:
    mf = taufree.deorbitalize(dft.RKS(mol), functional)
    mf.grids.level = 1
    mf.kernel()
    assert mf.converged
    return float(mf.e_tot)


def test_size_consistency(functional: Functional) -> None:
    """Two H2O 50 bohr apart, dipoles and distance at right angles: they do not attract."""
    one = water_molecule("sto-3g")
    turn = np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])  # about x: dipole z → y
    there = one.atom_coords() @ turn + [50.0, 0, 0]
    symbols = [one.atom_symbol(i) for i in range(3)] * 2
    positions = np.concatenate([one.atom_coords(), there])
    two = gto.M(
        atom=list(zip(symbols, positions, strict=True)), unit="Bohr", basis="sto-3g", verbose=0
    )
    e_one = converged_energy(functional, one)
    turned = one.set_geom_(one.atom_coords() @ turn, unit="Bohr", inplace=False)
    e_turned = converged_energy(functional, turned)
    e_two = converged_energy(functional, two)
    assert e_two == pytest.approx(e_one + e_turned, abs=SIZE_CONSISTENCY)


@pytest.mark.parametrize(
    "mol",
    [
        water_molecule(BASIS),
        gto.M(atom="N 0 0 0; O 0 1.10 0.47; O 0 -1.10 0.47", basis="def2-tzvp", spin=1, verbose=0),
        pytest.param(
            gto.M(atom="N 0 0 0; O 0 1.10 0.47; O 0 -1.10 0.47", basis=BASIS, spin=1, verbose=0),
            marks=pytest.mark.xfail(strict=True, reason="off by more than 5 mHa in def2-SVP"),
        ),
        gto.M(atom="O 0 0 0; H 0 0 0.97", basis=BASIS, charge=-1, verbose=0),
        gto.M(atom="N 0 0 0", basis=BASIS, spin=3, verbose=0),
    ],
    ids=["H2O", "NO2", "NO2 def2-svp", "OH-", "N"],
)
def test_converges_like_the_parent(functional: Functional, mol: gto.Mole) -> None:
    kind = dft.UKS if mol.spin else dft.RKS
    mf = taufree.deorbitalize(kind(mol).density_fit(), functional)
    mf.kernel()
    parent = kind(mol, xc="MS2").density_fit()
    parent.kernel()
    assert mf.converged and mf.cycles <= parent.cycles + 3
    assert mf.e_tot == pytest.approx(parent.e_tot, abs=5e-3)


@pytest.mark.parametrize(
    "mol",
    [
        water_molecule("def2-tzvp"),
        gto.M(atom="N 0 0 0; O 0 1.10 0.47; O 0 -1.10 0.47", basis="def2-tzvp", spin=1, verbose=0),
    ],
    ids=["H2O", "NO2"],
)
def test_the_second_parent(mol: gto.Mole) -> None:
    """r²SCAN, whose correlation takes the model's τ̃."""
    kind = dft.UKS if mol.spin else dft.RKS
    mf = taufree.deorbitalize(kind(mol).density_fit(), "r2scan")
    mf.kernel()
    parent = kind(mol, xc="R2SCAN").density_fit()
    parent.kernel()
    assert mf.converged and mf.cycles <= parent.cycles + 3
    assert mf.e_tot == pytest.approx(parent.e_tot, abs=2e-3)


def test_order_of_points_and_blocks(
    functional: Functional, monkeypatch: pytest.MonkeyPatch
) -> None:
    mol = water_molecule(BASIS)
    dm = hartree_fock_matrix(mol)
    double = taufree.load_model("ms2").double()
    for f, tolerance in ((functional, SAME_INTEGRAL_SINGLE), (double, SAME_INTEGRAL)):
        mf = taufree.deorbitalize(dft.RKS(mol), f)
        mf.grids.level = 1
        grids = mf.grids.build(with_non0tab=True)
        usual = mf._numint.nr_rks(mol, grids, "MS2", dm)[1]
        order = np.random.default_rng(0).permutation(len(grids.weights))
        grids.coords, grids.weights = grids.coords[order], grids.weights[order]
        grids.non0tab = grids.screen_index = None
        permuted = mf._numint.nr_rks(mol, grids, "MS2", dm)[1]
        assert permuted == pytest.approx(usual, abs=tolerance)
        with monkeypatch.context() as patch:
            patch.setattr(atomic_orbitals, "POINTS", 10 * atomic_orbitals.BLKSIZE)
            mf._numint._cache = None
            assert mf._numint.nr_rks(mol, grids, "MS2", dm)[1] == pytest.approx(
                usual, abs=tolerance
            )


@pytest.mark.parametrize("unrestricted", [False, True])
def test_potential_is_the_derivative_of_the_energy(unrestricted: bool) -> None:
    mol = water_molecule("6-31g")
    double = taufree.load_model("ms2").double()
    mf = taufree.deorbitalize((dft.UKS if unrestricted else dft.RKS)(mol), double)
    mf.grids.level = 0
    dm = np.array(mol.RHF().run().make_rdm1())
    integrate: Any = mf._numint.nr_rks
    if unrestricted:
        dm, integrate = np.array([0.55 * dm, 0.45 * dm]), mf._numint.nr_uks
    d = np.random.default_rng(0).normal(size=dm.shape) / 20
    d = d + d.swapaxes(-1, -2)

    def e(h: float) -> float:
        return float(integrate(mol, mf.grids, mf.xc, dm + h * d)[1])

    h = 1e-3
    numeric = (8 * (e(h) - e(-h)) - (e(2 * h) - e(-2 * h))) / (12 * h)
    v = integrate(mol, mf.grids, mf.xc, dm)[2]
    assert np.vdot(v, d) == pytest.approx(numeric, rel=FINITE_DIFFERENCE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::taufree.errors.DomainWarning")  # pseudopotentials
@pytest.mark.parametrize(
    ("symbol", "smearing"), [("Si", 0.0), ("Al", 0.1)], ids=["semiconductor", "metal"]
)
def test_crystals_converge(symbol: str, smearing: float) -> None:
    settings = Settings(basis="gth-szv", kpts=(2, 2, 2), smearing_ev=smearing)
    mf = taufree.deorbitalize(mean_field(bulk(symbol), settings))
    mf.kernel()
    assert mf.converged and mf.cycles < 20
