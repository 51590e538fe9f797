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
NO_CROSSING = 1e-4
"""Step in which no point crosses a face of the cell: PySCF shares space among the images that have
points in the cell, so that a point comes back on the other side with a slightly other weight. On
the smallest grid that is worth 1e-7 hartree."""
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
    mf = on_beckes_grid(functional, crystal.cell, kind, level=2)
    mf.kernel(dm0=crystal.make_rdm1())
    forces, stress = mf.Gradients().kernel(), mf.Gradients().get_stress()
    np.testing.assert_allclose(forces, crystal.Gradients().kernel(), atol=QUADRATURE)
    volume = crystal.cell.vol
    np.testing.assert_allclose(
        stress * volume, crystal.Gradients().get_stress() * volume, atol=QUADRATURE
    )


# --- E_xc of density matrices that stay while all else moves: no SCF


def on_beckes_grid(functional: Functional, cell: gto.Cell, kind: str, level: int = 0) -> Any:
    mf = {"KRKS": dft.KRKS, "KUKS": dft.KUKS}[kind](cell, cell.make_kpts([2, 1, 1]))
    mf.grids = dft.BeckeGrids(cell)
    mf.grids.level = level
    return taufree.deorbitalize(mf, functional)


@pytest.fixture(scope="module")
def density_matrices(kind: str) -> Array:
    """Any positive ones, ([2,] n_k, nao, nao); Hermitian and complex."""
    cell, rng = hydrogen(), np.random.default_rng(0)
    shape = (*((2,) if kind == "KUKS" else ()), 2, cell.nao, cell.nao)
    half = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    matrices: Array = half @ half.conj().swapaxes(-1, -2)
    return 1.5 * matrices / np.abs(matrices).max()


def xc_energy(functional: Functional, cell: gto.Cell, kind: str, dms: Array) -> float:
    mf = on_beckes_grid(functional, cell, kind)
    integrate = mf._numint.nr_rks if kind == "KRKS" else mf._numint.nr_uks
    return float(integrate(cell, mf.grids, mf.xc, dms, kpts=mf.kpts)[1])


def test_forces_with_the_response_of_beckes_grid(
    functional: Functional, kind: str, density_matrices: Array
) -> None:
    """The smallest grid there is: points and weights that follow nuclei leave no error of it."""
    gradients = on_beckes_grid(functional, hydrogen(), kind).Gradients().set(grid_response=True)
    gradients.get_j = lambda dm, kpts: np.zeros((3, *dm.shape))
    dms = density_matrices.reshape(-1, *density_matrices.shape[-3:])
    matrix = gradients.get_veff(density_matrices).reshape(3, *dms.shape)
    found = gradients._extra
    for atom, (_, _, first, last) in enumerate(gradients.cell.aoslice_by_atom()):
        part = slice(first, last)
        product = np.einsum("xskij,skji->x", matrix[..., part, :], dms[..., part])
        found[atom] += 2 * product.real / dms.shape[1]
    np.testing.assert_allclose(found.sum(0), 0, atol=1e-9)
    way = np.array([[0.3, -0.7, -0.4], [-0.2, 0.1, 0.6]])
    numeric = derivative(
        lambda t: xc_energy(functional, hydrogen(POSITIONS + t * way), kind, density_matrices),
        NO_CROSSING,
    )
    assert abs(numeric) > 1e-3
    assert np.vdot(found, way) == pytest.approx(numeric, abs=FORCE)


def test_stress_with_the_response_of_beckes_grid(
    functional: Functional, kind: str, density_matrices: Array
) -> None:
    """Any change of the cell: a turn counts too, for the directions of points do not turn."""
    gradients = on_beckes_grid(functional, hydrogen(), kind).Gradients().set(grid_response=True)
    found = gradients._xc_stress(density_matrices) * gradients.cell.vol
    strain = np.array([[0.5, 0.3, 0.1], [0.1, -0.3, 0.4], [-0.1, 0.4, 0.6]])

    def energy(t: float) -> float:
        move = np.eye(3) + t * strain
        cell = hydrogen(POSITIONS @ move.T, LATTICE @ move.T)
        return xc_energy(functional, cell, kind, density_matrices)

    numeric = derivative(energy, NO_CROSSING)
    assert abs(numeric) > 1e-3
    assert np.vdot(found, strain) == pytest.approx(numeric, abs=STRESS)


def test_what_pyscf_cannot_differentiate_is_refused(functional: Functional) -> None:
    cell = hydrogen()
    kpts = cell.make_kpts([1, 1, 1])
    for mf in (dft.RKS(cell), dft.KROKS(cell, kpts), dft.KRKS(cell, kpts).density_fit()):
        with pytest.raises(UnsupportedError, match=r"KRKS\(cell, kpts\)|GTH basis"):
            taufree.deorbitalize(mf, functional).Gradients()
    everything = hydrogen(basis="sto-3g", pseudo=None)
    with pytest.raises(UnsupportedError, match="GTH basis"):
        taufree.deorbitalize(dft.KRKS(everything, kpts), functional).nuc_grad_method()


def test_points_of_a_uniform_grid_do_not_follow_nuclei(crystal: Any) -> None:
    with_response = crystal.Gradients().set(grid_response=True).kernel()
    np.testing.assert_allclose(with_response, crystal.Gradients().kernel(), atol=1e-12)


def test_a_grid_of_ones_own_has_no_response(functional: Functional) -> None:
    mf = on_beckes_grid(functional, hydrogen(), "KRKS")
    mf.grids.build()
    mf.grids.coords = mf.grids.coords[::-1].copy()
    gradients = mf.Gradients().set(grid_response=True)
    with pytest.raises(UnsupportedError, match="leave out grid_response"):
        gradients._xc_stress(np.zeros((2, 2, 2)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::taufree.errors.DomainWarning")  # pseudopotentials
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

    def at(shift: Array, move: Array, start: Any = None) -> Any:
        r = (positions + shift) @ move.T
        atom = list(zip(atoms.symbols, r.tolist(), strict=True))
        basis = "gth-szv-molopt-sr" if name == "LiF" else "gth-szv"
        mesh = [45 if name == "LiF" else 35] * 3  # finer than what tokens see
        cell = gto.M(
            a=lattice @ move.T, atom=atom, unit="Bohr", basis=basis, pseudo="gth-pbe", mesh=mesh,
            verbose=0,
        )  # fmt: skip
        return converged(functional, cell, "KRKS", start)

    mf = at(np.zeros(3), np.eye(3))
    dm = mf.make_rdm1()
    way = np.array([[0, 0, 0], [0.6, 0.0, 0.8]])
    forces = derivative(lambda t: at(t * way, np.eye(3), dm).e_tot)
    assert np.vdot(mf.Gradients().kernel(), way) == pytest.approx(forces, abs=2e-5)
    strain = np.diag([0.6, 0.0, 0.8])
    stress = derivative(lambda t: at(np.zeros(3), np.eye(3) + t * strain, dm).e_tot, 2e-3)
    found = np.vdot(mf.Gradients().get_stress(), strain) * mf.cell.vol
    assert found == pytest.approx(stress, abs=2e-4)
