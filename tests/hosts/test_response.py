"""PySCF's response machinery on deorbitalized objects: finite differences, and consistency."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pyscf import dft, gto, scf, tdscf
from pyscf.pbc import dft as pbcdft
from pyscf.pbc import gto as pbcgto
from pyscf.scf import cphf

import taufree
from networks import random_functional
from reference import hydroxyl_radical, water_molecule
from taufree.errors import UnsupportedError
from taufree.functional import Functional
from taufree.physics.parents import Parent
from tolerances import FINITE_DIFFERENCE, SAME_INTEGRAL, SCF

Array = NDArray[np.float64]
EXCITATION = 1e-5
"""PySCF converges roots to 1e-5 in the residual, so energies far better."""


@pytest.fixture(scope="module")
def rough() -> Functional:
    return random_functional()


@pytest.fixture(scope="module")
def smooth() -> Functional:
    """α̃ ≈ 1 with some variation: an SCF converges as it does for a GGA."""
    return random_functional(roughness=1.0)


def deorbitalized(functional: Functional, mf: Any) -> Any:
    mf.grids.level = 0
    return taufree.deorbitalize(mf, functional).set(conv_tol=1e-11)


@pytest.fixture(scope="module")
def water_ks(smooth: Functional) -> Any:
    """Read only."""
    mf = deorbitalized(smooth, dft.RKS(water_molecule("sto-3g")))
    mf.kernel()
    assert mf.converged
    return mf


def random_symmetric(*shape: int) -> Array:
    d = np.random.default_rng(0).normal(size=shape) / 20
    return d + d.swapaxes(-1, -2)


def five_points(v: Callable[[float], Array], h: float = 1e-3) -> Array:
    return (8 * (v(h) - v(-h)) - (v(2 * h) - v(-2 * h))) / (12 * h)


def assert_close(a: Array, b: Array, tolerance: float = FINITE_DIFFERENCE) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


# --- the kernel is the derivative of the potential


def test_closed_shell_kernel(rough: Functional) -> None:
    mf = deorbitalized(rough, dft.RKS(water_molecule("sto-3g")))
    ni, where = mf._numint, (mf.mol, mf.grids, mf.xc)
    dm = np.array(mf.mol.RHF().run().make_rdm1())
    d = random_symmetric(2, *dm.shape)
    kernel = ni.nr_rks_fxc(*where, dm, d)
    for i in range(2):
        assert_close(kernel[i], five_points(lambda h, i=i: ni.nr_rks(*where, dm + h * d[i])[2]))
    assert_close(ni.nr_fxc(*where, dm, d[0]), kernel[0], SAME_INTEGRAL)
    # only the symmetric part of a trial matrix is a density
    skew = np.triu(np.ones_like(dm), 1)
    assert_close(ni.nr_rks_fxc(*where, dm, d[0] + skew - skew.T), kernel[0], SAME_INTEGRAL)


def test_singlet_and_triplet_kernels(rough: Functional) -> None:
    """Both spins change alike, or oppositely."""
    mf = deorbitalized(rough, dft.RKS(water_molecule("sto-3g")))
    ni, where = mf._numint, (mf.mol, mf.grids, mf.xc)
    dm = np.array(mf.mol.RHF().run().make_rdm1())
    d = random_symmetric(*dm.shape)
    for singlet, sign in ((True, 1), (False, -1)):
        numeric = five_points(
            lambda h, sign=sign: ni.nr_uks(
                *where, np.array([dm / 2 + h * d, dm / 2 + sign * h * d])
            )[2][0]
        )
        assert_close(ni.nr_rks_fxc_st(*where, dm, d, singlet=singlet), numeric)
    twice = ni.nr_rks_fxc_st(*where, dm, d, singlet=True)
    assert_close(twice, 2 * ni.nr_rks_fxc(*where, dm, d), 1e-9)


def test_open_shell_kernel(rough: Functional) -> None:
    mf = deorbitalized(rough, dft.UKS(hydroxyl_radical("sto-3g")))
    ni, where = mf._numint, (mf.mol, mf.grids, mf.xc)
    dm = np.array(mf.mol.UHF().run().make_rdm1())
    d = random_symmetric(*dm.shape)
    numeric = five_points(lambda h: ni.nr_uks(*where, dm + h * d)[2])
    assert_close(ni.nr_uks_fxc(*where, dm, d), numeric)
    assert_close(ni.nr_fxc(*where, dm, d, spin=1), numeric)


def test_many_trial_densities_in_little_memory(smooth: Functional, water_ks: Any) -> None:
    ni, where = water_ks._numint, (water_ks.mol, water_ks.grids, water_ks.xc)
    orbitals = water_ks.mo_coeff, water_ks.mo_occ
    kernel = ni.cache_xc_kernel(*where, *orbitals, spin=0)[2]
    d = random_symmetric(3, 7, 7)
    usual = ni.nr_rks_fxc(*where, None, d, fxc=kernel)
    small = ni.nr_rks_fxc(*where, None, d, fxc=kernel, max_memory=1)
    assert usual.shape == d.shape
    assert_close(small, usual, SAME_INTEGRAL)


# --- what PySCF makes of it


@pytest.mark.parametrize("kind", ["RKS", "UKS", "ROKS", "density-fitted"])
def test_second_order_scf(smooth: Functional, kind: str) -> None:
    """Quadratic convergence needs the exact kernel."""
    amino = gto.M(atom="N 0 0 0; H 0 .8 .51; H 0 -.8 .51", basis="sto-3g", spin=1, verbose=0)
    mol = amino if kind in ("UKS", "ROKS") else water_molecule("sto-3g")
    mf = dft.RKS(mol).density_fit() if kind == "density-fitted" else getattr(dft, kind)(mol)
    mf = deorbitalized(smooth, mf)
    usual = mf.kernel()
    newton = mf.newton()
    newton.kernel(mo_coeff=None, mo_occ=None)
    assert newton.converged
    assert newton.e_tot == pytest.approx(usual, abs=SCF)


def test_stability(smooth: Functional, water_ks: Any) -> None:
    """Water is stable; H2 pulled apart breaks spin symmetry, and its UKS solution is stable."""
    assert water_ks.stability(external=True, return_status=True)[2:] == (True, True)
    mol = gto.M(atom="H 0 0 0; H 0 0 3", basis="sto-3g", verbose=0)
    mf = deorbitalized(smooth, dft.RKS(mol))
    mf.kernel()
    assert mf.stability(external=True, return_status=True)[2:] == (True, False)
    broken = mf.to_uks()
    broken.kernel(np.array([np.diag([1.0, 0.0]), np.diag([0.0, 1.0])]))  # one spin on each atom
    assert broken.e_tot < mf.e_tot - 1e-3
    assert broken.stability(return_status=True)[2]


def polarizability(mf: Any) -> Array:
    """Coupled perturbed Kohn-Sham, (3, 3)."""
    c, occupied = mf.mo_coeff, mf.mo_occ > 0
    virtual, filled = c[:, ~occupied], c[:, occupied]
    dipoles = np.array([virtual.T @ r @ filled for r in mf.mol.intor("int1e_r")])
    response = mf.gen_response(hermi=1)

    def fvind(u: Array) -> Array:
        u = u.reshape(-1, *dipoles.shape[1:])
        dms = 2 * np.einsum("pa,xai,qi->xpq", virtual, u, filled)
        v = response(dms + dms.swapaxes(1, 2))
        return np.einsum("pa,xpq,qi->xai", virtual, v, filled)

    u = cphf.solve(fvind, mf.mo_energy, mf.mo_occ, dipoles, tol=1e-10)[0]
    found: Array = -4 * np.einsum("xai,yai->xy", dipoles, u.reshape(dipoles.shape))
    return found


def test_polarizability_is_the_derivative_of_the_dipole(smooth: Functional, water_ks: Any) -> None:
    mol = water_ks.mol
    r = mol.intor("int1e_r")

    def dipole(field: float) -> Array:
        mf = deorbitalized(smooth, dft.RKS(mol))
        hcore = scf.hf.get_hcore(mol) + field * r[2]
        mf.get_hcore = lambda *_: hcore
        mf.kernel(water_ks.make_rdm1())
        return np.asarray(mf.dip_moment(unit="AU", verbose=0))

    numeric = five_points(dipole, 2e-3)
    assert numeric[2] > 1
    np.testing.assert_allclose(polarizability(water_ks)[2], numeric, rtol=0, atol=1e-5)


def test_excitations_unrestricted_are_singlets_and_triplets(water_ks: Any) -> None:
    singlets = water_ks.TDA().set(nstates=2).run().e
    triplets = water_ks.TDA().set(nstates=2, singlet=False).run().e
    both = water_ks.to_uks()
    both.mo_coeff = np.array([water_ks.mo_coeff] * 2)
    unrestricted = both.TDA().set(nstates=3).run().e
    expected = np.sort([*singlets, *triplets])[:3]
    np.testing.assert_allclose(unrestricted, expected, rtol=0, atol=EXCITATION)
    assert (triplets < singlets).all()


@pytest.mark.parametrize("solver", ["TDDFT", "CasidaTDDFT"])
def test_sum_over_states_is_the_polarizability(water_ks: Any, solver: str) -> None:
    """All 10 excitations of a minimal basis: α = 2 Σ_n |μ_n|²/ω_n."""
    td = (tdscf.rks.TDDFT if solver == "TDDFT" else tdscf.rks.CasidaTDDFT)(water_ks)
    td.set(nstates=10).run()
    assert len(td.e) == 10
    moments = td.transition_dipole()
    alpha = 2 * np.einsum("nx,ny,n->xy", moments, moments, 1 / td.e)
    np.testing.assert_allclose(alpha, polarizability(water_ks), rtol=0, atol=1e-4)


def test_one_electron_has_an_empty_channel(smooth: Functional) -> None:
    mf = deorbitalized(smooth, dft.UKS(gto.M(atom="H", spin=1, basis="6-31g", verbose=0)))
    mf.kernel()
    newton = mf.newton().run()
    assert newton.e_tot == pytest.approx(mf.e_tot, abs=SCF)


# --- what is refused


REFUSED: dict[str, Callable[[Any], Any]] = {
    "complex densities": lambda mf: mf.gen_response()(1j * np.eye(7)),
    "A and B matrices": lambda mf: mf.TDA().get_ab(),
    "excited-state forces": lambda mf: mf.TDA().set(nstates=1).run().Gradients().kernel(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_kernel_cannot_give_is_refused(water_ks: Any, name: str) -> None:
    with pytest.raises(UnsupportedError, match="not available for a deorbitalized functional"):
        REFUSED[name](water_ks)


def test_a_correlation_of_tau_is_refused(
    smooth: Functional, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would depend on both spins' α̃ at once."""
    monkeypatch.setattr(Parent, "correlation_needs_tau", True)
    mf = deorbitalized(smooth, dft.RKS(water_molecule("sto-3g")))
    with pytest.raises(UnsupportedError, match=r"response of MS2.*finite differences"):
        mf._numint.cache_xc_kernel1(mf.mol, mf.grids, mf.xc, np.eye(7))


@pytest.mark.parametrize("multigrid", [False, True])
def test_crystals_are_refused(smooth: Functional, multigrid: bool) -> None:
    """PySCF's periodic integrators have kernels of their own: the parent's."""
    cell = pbcgto.M(a=4 * np.eye(3), atom="He 0 0 0", basis="gth-szv", pseudo="gth-pade", verbose=0)
    mf = pbcdft.KRKS(cell, cell.make_kpts([2, 1, 1]))
    mf = taufree.deorbitalize(mf.multigrid_numint() if multigrid else mf, smooth)
    for ask in (mf.gen_response, mf._numint.nr_rks_fxc, mf._numint.nr_uks_fxc):
        with pytest.raises(UnsupportedError, match=r"pbc\.dft\.KRKS"):
            ask()
