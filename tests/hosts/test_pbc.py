"""Periodic host: its potential is the energy's derivative, and cells are cut as one likes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pyscf.pbc import dft, gto
from pyscf.pbc.dft import numint

import taufree
from networks import random_functional
from taufree.errors import UnsupportedError, UserError
from taufree.functional import Functional
from tolerances import FINITE_DIFFERENCE, SAME_INTEGRAL, SCREENING

Array = NDArray[np.complex128]


@pytest.fixture(scope="module")
def smooth() -> Functional:
    """α̃ ≈ 1 with some variation: an SCF converges as it does for a GGA."""
    return random_functional(roughness=1.0)


@pytest.fixture(scope="module")
def rough() -> Functional:
    return random_functional()


def hydrogen(**options: Any) -> gto.Cell:
    """H2 in a small skewed cell: most neighbours are periodic images."""
    a = np.array([[3.4, 0.4, 0.0], [0.0, 3.6, 0.3], [0.5, 0.0, 4.2]])
    given = {"a": a, "atom": "H 0.1 0 0; H 0.3 0.1 1.4", "basis": "gth-dzv", "pseudo": "gth-pade"}
    return gto.M(**{**given, "mesh": [10, 10, 12], "unit": "B", "verbose": 0, **options})


def kpoints(cell: gto.Cell) -> Array:
    """Γ, points at the zone boundary, and pairs k and −k."""
    return np.array(cell.make_kpts([2, 1, 3]))


def guess(cell: gto.Cell, kpts: Array) -> Array:
    """Density matrices with a complex part, (n_k, nao, nao)."""
    dm = np.array(dft.KRKS(cell, kpts).get_init_guess(key="1e"), complex)
    return dm + random_hermitian(dm.shape, seed=1) / 50


def random_hermitian(shape: tuple[int, ...], seed: int = 0) -> Array:
    real, imaginary = np.random.default_rng(seed).normal(size=(2, *shape))
    d = real + 1j * imaginary
    return d + d.conj().swapaxes(-1, -2)


def directional_derivative(e: Callable[[float], float], h: float = 1e-3) -> float:
    return (8 * (e(h) - e(-h)) - (e(2 * h) - e(-2 * h))) / (12 * h)


def trace(v: Array, d: Array) -> float:
    """∂E of ∂D: the mean over k of tr V_k D_k."""
    return float((v * d.swapaxes(-1, -2)).sum().real / v.shape[-3])


# --- energy and potential matrix


def test_krks_potential_is_the_derivative_of_the_energy(rough: Functional) -> None:
    cell = hydrogen()
    kpts = kpoints(cell)
    mf = taufree.deorbitalize(dft.KRKS(cell, kpts), rough)
    dm, direction = guess(cell, kpts), random_hermitian((6, cell.nao, cell.nao)) / 50

    def integrate(dm: Array) -> Any:
        return mf._numint.nr_rks(cell, mf.grids, mf.xc, dm, kpts=kpts)

    numeric = directional_derivative(lambda h: float(integrate(dm + h * direction)[1]))
    v = integrate(dm)[2]
    assert abs(numeric) > 1e-2
    assert trace(v, direction) == pytest.approx(numeric, rel=FINITE_DIFFERENCE)
    np.testing.assert_allclose(v, v.conj().swapaxes(1, 2), rtol=0, atol=1e-13)


@pytest.mark.parametrize("spins", [(1, 0), (0, 1), (1, 1)], ids=["up", "down", "both"])
def test_kuks_potential_is_the_derivative_of_the_energy(
    rough: Functional, spins: tuple[int, int]
) -> None:
    cell = hydrogen()
    kpts = kpoints(cell)
    mf = taufree.deorbitalize(dft.KUKS(cell, kpts), rough)
    dms = np.array([0.6 * guess(cell, kpts), 0.4 * guess(cell, kpts)])
    direction = random_hermitian(dms.shape) / 50 * np.reshape(spins, (2, 1, 1, 1))

    def integrate(dms: Array) -> Any:
        return mf._numint.nr_uks(cell, mf.grids, mf.xc, dms, kpts=kpts)

    numeric = directional_derivative(lambda h: float(integrate(dms + h * direction)[1]))
    assert abs(numeric) > 1e-2
    assert trace(integrate(dms)[2], direction) == pytest.approx(numeric, rel=FINITE_DIFFERENCE)


def test_fock_matrix_is_the_derivative_of_the_total_energy(rough: Functional) -> None:
    """With Coulomb, kinetic and pseudopotential terms, through PySCF's own get_veff."""
    cell = hydrogen()
    kpts = kpoints(cell)
    mf = taufree.deorbitalize(dft.KRKS(cell, kpts), rough)
    dm, direction = guess(cell, kpts), random_hermitian((6, cell.nao, cell.nao)) / 50
    fock = np.array(mf.get_fock(dm=dm))
    numeric = directional_derivative(lambda h: float(mf.energy_elec(dm + h * direction)[0]))
    assert trace(fock, direction) == pytest.approx(numeric, rel=FINITE_DIFFERENCE)


def test_energy_is_the_functionals(rough: Functional) -> None:
    """E_xc = Σ_j w_j e_x(r_j) of the reference form + REGTPSS correlation by PySCF."""
    cell = hydrogen()
    kpts = kpoints(cell)
    mf = taufree.deorbitalize(dft.KRKS(cell, kpts), rough)
    dm = guess(cell, kpts)
    electrons, exc, _ = mf._numint.nr_rks(cell, mf.grids, mf.xc, dm, kpts=kpts)
    libxc = numint.KNumInt()
    ao = libxc.eval_ao(cell, mf.grids.coords, kpts, deriv=1)
    rho = torch.from_numpy(libxc.eval_rho(cell, ao, dm, None, "GGA", hermi=1))
    weights = torch.from_numpy(mf.grids.weights)
    geometry = rough.geometry(
        torch.from_numpy(mf.grids.coords),
        torch.from_numpy(cell.atom_coords()),
        torch.from_numpy(cell.lattice_vectors()),
    )
    e_x = weights @ rough.energy_density(rho[0], rho[1:].T, weights, geometry)
    e_c = libxc.nr_rks(cell, mf.grids, ",GGA_C_REGTPSS", dm, kpts=kpts)[1]
    assert exc == pytest.approx(e_x.item() + e_c, abs=SCREENING)
    assert electrons == pytest.approx((weights @ rho[0]).item(), abs=SCREENING)


def test_closed_shell_is_the_same_unrestricted(rough: Functional) -> None:
    cell = hydrogen()
    kpts = kpoints(cell)
    mf = taufree.deorbitalize(dft.KRKS(cell, kpts), rough)
    dm = guess(cell, kpts)
    where = cell, mf.grids, mf.xc
    n, e, v = mf._numint.nr_rks(*where, dm, kpts=kpts)
    n2, e2, v2 = mf._numint.nr_uks(*where, np.array([dm, dm]) / 2, kpts=kpts)
    assert e2 == pytest.approx(e, abs=SAME_INTEGRAL)
    assert sum(n2) == pytest.approx(n, abs=SAME_INTEGRAL)
    np.testing.assert_allclose(v2, [v, v], rtol=0, atol=SAME_INTEGRAL)


# --- what is refused


@pytest.mark.parametrize("xc", ["PBE", "SCAN", "HSE06", "MS2,"])
def test_other_functionals_are_refused(smooth: Functional, xc: str) -> None:
    cell = hydrogen()
    with pytest.raises(UserError, match=r"stands for MS2.* set mf.xc = 'MS2'"):
        taufree.deorbitalize(dft.KRKS(cell, kpoints(cell), xc=xc), smooth)


@pytest.mark.parametrize(
    "kind", [dft.KGKS, dft.GKS, lambda cell: dft.KRKSpU(cell, U_idx=["0 H 1s"], U_val=[1.0])]
)
def test_objects_of_another_kind_are_refused(smooth: Functional, kind: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"KRKS\(cell, kpts\)"):
        taufree.deorbitalize(kind(hydrogen()), smooth)
