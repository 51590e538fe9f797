"""Forces and stress of crystals are derivatives of the energy on the same mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pyscf.pbc import dft, gto

import taufree
from networks import random_functional
from taufree.errors import UnsupportedError
from taufree.functional import Functional

Array = NDArray[np.float64]

FORCE = 2e-6
"""Hartree per bohr: five-point differences, an SCF converged to 1e-11, lattice sums to 1e-8."""
STRESS = 2e-6
"""Of the energy (hartree) by strain; PySCF differentiates integrals numerically."""
QUADRATURE = 4e-4
"""Hartree per bohr, or by strain: some 1e-3 of the largest, on Becke's grid of level 2."""
LATTICE = np.array([[4.0, 0.2, 0], [0, 4.5, 0.1], [0.3, 0, 4.2]])
POSITIONS = np.array([[0.1, 0, 0.2], [0.3, 0.2, 1.6]])


@pytest.fixture(scope="module")
def functional() -> Functional:
    """Sharpest Gaussian 3.2 bohr⁻², which the uniform grid resolves."""
    return random_functional(roughness=1.0, n_radial=(6, 5, 4))


def hydrogen(positions: Array = POSITIONS, lattice: Array = LATTICE, **options: Any) -> gto.Cell:
    """Two atoms in a skewed cell, in bohr; two protons, so the mesh can be small."""
    atoms = [("H", r.tolist()) for r in positions]
    settings = {"basis": "gth-szv", "pseudo": "gth-pbe", "mesh": [17] * 3, **options}
    return gto.M(a=lattice, atom=atoms, unit="Bohr", verbose=0, **settings)


def converged(functional: Functional, cell: gto.Cell, kind: str, start: Any = None) -> Any:
    kpts = cell.make_kpts([2, 1, 1])
    mf = {"KRKS": dft.KRKS, "KUKS": dft.KUKS}[kind](cell, kpts)
    if kind == "KUKS":
        mf.nelec = 3, 1  # at both k-points together
    mf = taufree.deorbitalize(mf, functional).set(conv_tol=1e-11, conv_tol_grad=1e-6)
    mf.kernel(dm0=start)
    assert mf.converged
    return mf


def derivative(e: Callable[[float], float], h: float = 5e-3) -> float:
    return (8 * (e(h) - e(-h)) - (e(2 * h) - e(-2 * h))) / (12 * h)


@pytest.fixture(scope="module", params=["KRKS", "KUKS"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def crystal(functional: Functional, kind: str) -> Any:
    return converged(functional, hydrogen(), kind)


def test_forces(functional: Functional, kind: str, crystal: Any) -> None:
    gradient = crystal.nuc_grad_method().kernel()
    way = np.array([[0.3, -0.4, 0.5], [-0.2, 0.1, 0.6]])
    start = crystal.make_rdm1()
    numeric = derivative(
        lambda t: converged(functional, hydrogen(POSITIONS + t * way), kind, start).e_tot
    )
    assert abs(numeric) > 1e-3
    assert np.vdot(gradient, way) == pytest.approx(numeric, abs=FORCE)


def test_stress(functional: Functional, kind: str, crystal: Any) -> None:
    """k-points and mesh are fractions of the cell and move with it."""
    stress = crystal.Gradients().get_stress()
    np.testing.assert_allclose(stress, stress.T, atol=STRESS / crystal.cell.vol)
    strain = np.array([[0.5, 0.2, 0.1], [0.2, -0.3, 0.4], [0.1, 0.4, 0.6]])
    start = crystal.make_rdm1()

    def energy(t: float) -> float:
        move = np.eye(3) + t * strain
        cell = hydrogen(POSITIONS @ move.T, LATTICE @ move.T)
        return float(converged(functional, cell, kind, start).e_tot)

    numeric = derivative(energy)
    assert abs(numeric) > 1e-3
    assert np.vdot(stress, strain) * crystal.cell.vol == pytest.approx(numeric, abs=STRESS)


def test_beckes_grid_gives_the_same(functional: Functional, kind: str, crystal: Any) -> None:
    """Two quadratures of one functional; the mesh of Coulomb integrals stays the same."""
    if kind == "KUKS":
        pytest.skip("the same code")
    mf = dft.KRKS(crystal.cell, crystal.kpts)
    mf.grids = dft.BeckeGrids(crystal.cell)
    mf.grids.level = 2
    mf = taufree.deorbitalize(mf, functional)
    mf.kernel(dm0=crystal.make_rdm1())
    forces, stress = mf.Gradients().kernel(), mf.Gradients().get_stress()
    np.testing.assert_allclose(forces, crystal.Gradients().kernel(), atol=QUADRATURE)
    volume = crystal.cell.vol
    np.testing.assert_allclose(
        stress * volume, crystal.Gradients().get_stress() * volume, atol=QUADRATURE
    )


def test_what_pyscf_cannot_differentiate_is_refused(functional: Functional) -> None:
    cell = hydrogen()
    kpts = cell.make_kpts([1, 1, 1])
    for mf in (dft.RKS(cell), dft.KROKS(cell, kpts), dft.KRKS(cell, kpts).density_fit()):
        with pytest.raises(UnsupportedError, match=r"KRKS\(cell, kpts\)|GTH basis"):
            taufree.deorbitalize(mf, functional).Gradients()
    everything = hydrogen(basis="sto-3g", pseudo=None)
    with pytest.raises(UnsupportedError, match="GTH basis"):
        taufree.deorbitalize(dft.KRKS(everything, kpts), functional).nuc_grad_method()


def test_grid_response_is_refused(crystal: Any) -> None:
    with pytest.raises(UnsupportedError, match="use a finer grid"):
        crystal.Gradients().set(grid_response=True).kernel()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LiF", "Si"])
def test_larger_crystals(name: str) -> None:
    """LiF with an atom out of place, strained silicon: the shipped model, converged meshes."""
    from ase.build import bulk

    a = 4.03 if name == "LiF" else 5.43  # Å, near the experimental ones
    atoms = bulk(name, "rocksalt" if name == "LiF" else "diamond", a=a)
    lattice, positions = atoms.cell.array / 0.529177, atoms.positions / 0.529177
    lattice = lattice @ (np.eye(3) + np.diag([0.01, 0, -0.01]))
    positions = positions + np.array([[0, 0, 0], [0.1, 0.05, -0.1]])
    functional = taufree.load_model("ms2").double()

    def energy(shift: Array, move: Array) -> Any:
        r = (positions + shift) @ move.T
        atom = list(zip(atoms.symbols, r.tolist(), strict=True))
        basis = "gth-szv-molopt-sr" if name == "LiF" else "gth-szv"
        mesh = [45] * 3 if name == "LiF" else [27] * 3
        cell = gto.M(
            a=lattice @ move.T, atom=atom, unit="Bohr", basis=basis, pseudo="gth-pbe", mesh=mesh,
            verbose=0,
        )  # fmt: skip
        return converged(functional, cell, "KRKS")

    mf = energy(np.zeros(3), np.eye(3))
    way = np.array([[0, 0, 0], [0.6, 0.0, 0.8]])
    forces = derivative(lambda t: energy(t * way, np.eye(3)).e_tot)
    assert np.vdot(mf.Gradients().kernel(), way) == pytest.approx(forces, abs=2e-5)
    strain = np.diag([0.6, 0.0, 0.8])
    stress = derivative(lambda t: energy(np.zeros(3), np.eye(3) + t * strain).e_tot, 2e-3)
    found = np.vdot(mf.Gradients().get_stress(), strain) * mf.cell.vol
    assert found == pytest.approx(stress, abs=2e-4)
