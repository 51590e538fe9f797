"""PySCF host: its potential is the energy's derivative, stock features work, others are refused."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pyscf import dft, gto, lib, scf
from pyscf.dft import numint
from pyscf.dft.rkspu import RKSpU
from pyscf.dft.ukspu import UKSpU

import taufree
from networks import random_functional
from reference import hydroxyl_radical, water_molecule
from taufree.errors import DomainWarning, UnsupportedError, UserError
from taufree.functional import Functional
from taufree.hosts import atomic_orbitals, exchange_correlation
from taufree.hosts import pyscf as host
from tolerances import (
    FINITE_DIFFERENCE,
    SAME_INTEGRAL,
    SAME_INTEGRAL_SINGLE,
    SCF,
    SCREENING,
)

Array = NDArray[np.float64]
KOHN_SHAM = {"RKS": dft.RKS, "UKS": dft.UKS, "ROKS": dft.ROKS}


@pytest.fixture(scope="module")
def smooth() -> Functional:
    """α̃ ≈ 1 with some variation: an SCF converges as it does for a GGA."""
    return random_functional(roughness=1.0)


@pytest.fixture(scope="module")
def rough() -> Functional:
    return random_functional()


def kohn_sham(
    functional: Functional, mol: gto.Mole | None = None, kind: str = "RKS", fit: bool = False
) -> Any:
    """A deorbitalized object on the smallest grid."""
    mf = KOHN_SHAM[kind](mol or water_molecule("sto-3g"))
    mf = mf.density_fit() if fit else mf
    mf.grids.level = 0
    return taufree.deorbitalize(mf, functional)


@pytest.fixture(scope="module")
def converged(smooth: Functional) -> Any:
    """Read only: take a copy to change it."""
    mf = kohn_sham(smooth)
    mf.kernel()
    assert mf.converged
    return mf


@pytest.fixture(scope="module")
def water_dm() -> Array:
    return np.array(water_molecule().RHF().run().make_rdm1())


@pytest.fixture(scope="module")
def hydroxyl_dms() -> Array:
    return np.array(hydroxyl_radical().UHF().run().make_rdm1())


# --- energy and potential matrix


def directional_derivative(e: Callable[[float], float], h: float = 1e-3) -> float:
    return (8 * (e(h) - e(-h)) - (e(2 * h) - e(-2 * h))) / (12 * h)


def random_symmetric(shape: tuple[int, ...], seed: int = 0) -> Array:
    d = np.random.default_rng(seed).normal(size=shape)
    return d + d.swapaxes(-1, -2)


def test_rks_potential_is_the_derivative_of_the_energy(rough: Functional, water_dm: Array) -> None:
    mf = kohn_sham(rough, water_molecule())
    ni, grids = mf._numint, mf.grids
    direction = random_symmetric(water_dm.shape) / 20

    def e(h: float) -> float:
        return float(ni.nr_rks(mf.mol, grids, mf.xc, water_dm + h * direction)[1])

    v = ni.nr_rks(mf.mol, grids, mf.xc, water_dm)[2]
    numeric = directional_derivative(e)
    assert abs(numeric) > 1e-2
    assert np.vdot(v, direction) == pytest.approx(numeric, rel=FINITE_DIFFERENCE)
    np.testing.assert_allclose(v, v.T, rtol=0, atol=1e-13)


@pytest.mark.parametrize("spins", [(1, 0), (0, 1), (1, 1)], ids=["up", "down", "both"])
def test_uks_potential_is_the_derivative_of_the_energy(
    rough: Functional, hydroxyl_dms: Array, spins: tuple[int, int]
) -> None:
    mf = kohn_sham(rough, hydroxyl_radical(), "UKS")
    ni, grids = mf._numint, mf.grids
    direction = random_symmetric(hydroxyl_dms.shape) / 20 * np.reshape(spins, (2, 1, 1))

    def e(h: float) -> float:
        return float(ni.nr_uks(mf.mol, grids, mf.xc, hydroxyl_dms + h * direction)[1])

    v = ni.nr_uks(mf.mol, grids, mf.xc, hydroxyl_dms)[2]
    numeric = directional_derivative(e)
    assert abs(numeric) > 1e-2
    assert np.vdot(v, direction) == pytest.approx(numeric, rel=FINITE_DIFFERENCE)


def test_fock_matrix_is_the_derivative_of_the_total_energy(
    rough: Functional, water_dm: Array
) -> None:
    """With Coulomb and one-electron terms, through PySCF's own get_veff."""
    mf = kohn_sham(rough, water_molecule(), fit=True)
    direction = random_symmetric(water_dm.shape) / 20
    fock = mf.get_fock(dm=water_dm)
    numeric = directional_derivative(lambda h: mf.energy_elec(water_dm + h * direction)[0])
    assert np.vdot(fock, direction) == pytest.approx(numeric, rel=FINITE_DIFFERENCE)


def test_energy_is_the_functionals(rough: Functional, water_dm: Array) -> None:
    """E_xc = Σ_j w_j e_x(r_j) of the reference form + REGTPSS correlation by PySCF."""
    mf = kohn_sham(rough, water_molecule())
    electrons, exc, _ = mf._numint.nr_rks(mf.mol, mf.grids, mf.xc, water_dm)
    ao = numint.eval_ao(mf.mol, mf.grids.coords, deriv=1)
    rho = torch.from_numpy(numint.eval_rho(mf.mol, ao, water_dm, xctype="GGA"))
    weights = torch.from_numpy(mf.grids.weights)
    nuclei = torch.from_numpy(mf.mol.atom_coords())
    geometry = rough.geometry(torch.from_numpy(mf.grids.coords), nuclei)
    e_x = weights @ rough.energy_density(rho[0], rho[1:].T, weights, geometry)
    e_c = numint.NumInt().nr_rks(mf.mol, mf.grids, ",GGA_C_REGTPSS", water_dm)[1]
    assert exc == pytest.approx(e_x.item() + e_c, abs=SCREENING)
    assert electrons == pytest.approx((weights @ rho[0]).item(), abs=SCREENING)


def test_closed_shell_is_the_same_unrestricted(rough: Functional, water_dm: Array) -> None:
    mf = kohn_sham(rough, water_molecule())
    half = np.array([water_dm, water_dm]) / 2
    n, e, v = mf._numint.nr_rks(mf.mol, mf.grids, mf.xc, water_dm)
    for dms in (half, water_dm):  # PySCF splits a total density matrix
        n2, e2, v2 = mf._numint.nr_uks(mf.mol, mf.grids, mf.xc, dms)
        assert e2 == pytest.approx(e, abs=SAME_INTEGRAL)
        assert sum(n2) == pytest.approx(n, abs=SAME_INTEGRAL)
        np.testing.assert_allclose(v2, [v, v], rtol=0, atol=SAME_INTEGRAL)


def test_spin_scaling(rough: Functional, hydroxyl_dms: Array) -> None:
    """E_x[ρ↑, ρ↓] = ½E_x[2ρ↑] + ½E_x[2ρ↓], correlation from libxc."""
    mf = kohn_sham(rough, hydroxyl_radical(), "UKS")
    where = mf.mol, mf.grids
    libxc = numint.NumInt()
    exc = mf._numint.nr_uks(*where, mf.xc, hydroxyl_dms)[1]
    e_x = exc - libxc.nr_uks(*where, ",GGA_C_REGTPSS", hydroxyl_dms)[1]
    halves = [
        mf._numint.nr_rks(*where, mf.xc, 2 * dm)[1]
        - libxc.nr_rks(*where, ",GGA_C_REGTPSS", 2 * dm)[1]
        for dm in hydroxyl_dms
    ]
    assert e_x == pytest.approx(sum(halves) / 2, abs=SCREENING)


def test_orbitals_that_tag_a_density_matrix_change_nothing(smooth: Functional) -> None:
    """PySCF takes ρ from them where it can; ROKS has one set for both spins."""
    for mol, kind in (
        (water_molecule("sto-3g"), "RKS"),
        (hydroxyl_radical("sto-3g"), "UKS"),
        (hydroxyl_radical("sto-3g"), "ROKS"),
    ):
        mf = kohn_sham(smooth, mol, kind)
        guess = KOHN_SHAM[kind](mol, xc="LDA,VWN").run(conv_tol=1e-3)
        dm = guess.make_rdm1()
        assert dm.mo_coeff is not None
        integrate = mf._numint.nr_rks if kind == "RKS" else mf._numint.nr_uks
        tagged = integrate(mol, mf.grids, mf.xc, dm)
        plain = integrate(mol, mf.grids, mf.xc, np.array(dm))
        assert tagged[1] == pytest.approx(plain[1], abs=SCREENING)
        np.testing.assert_allclose(tagged[2], plain[2], rtol=0, atol=SCREENING)


def test_several_density_matrices_at_once(smooth: Functional, hydroxyl_dms: Array) -> None:
    """Shapes and values as from PySCF's integrator."""
    mf = kohn_sham(smooth, hydroxyl_radical(), "UKS")
    ours, libxc = mf._numint, numint.NumInt()
    where = mf.mol, mf.grids
    sets = hydroxyl_dms[:, None] * np.reshape([1.0, 0.9, 1.1], (3, 1, 1))
    for name, dms, each in (
        ("nr_rks", sets[0], list(sets[0])),
        ("nr_uks", sets, list(sets.swapaxes(0, 1))),
    ):
        n, e, v = getattr(ours, name)(*where, "MS2", dms)
        shapes = [np.shape(x) for x in getattr(libxc, name)(*where, "PBE", dms)]
        assert [np.shape(x) for x in (n, e, v)] == shapes
        for i, dm in enumerate(each):
            n1, e1, v1 = getattr(ours, name)(*where, "MS2", dm)
            np.testing.assert_allclose(n[..., i], n1, rtol=0, atol=SCREENING)
            assert e[i] == pytest.approx(e1, abs=SCREENING)
            v_i = v[i] if name == "nr_rks" else v[:, i]
            np.testing.assert_allclose(v_i, v1, rtol=0, atol=SCREENING)


def test_asymmetric_density_matrix(smooth: Functional, water_dm: Array) -> None:
    """hermi=0: only the symmetric part is a density."""
    mf = kohn_sham(smooth, water_molecule())
    skew = np.random.default_rng(0).normal(size=water_dm.shape) / 100
    skew = skew - skew.T
    symmetric = mf._numint.nr_rks(mf.mol, mf.grids, mf.xc, water_dm)[1]
    e = mf._numint.nr_rks(mf.mol, mf.grids, mf.xc, water_dm + skew, hermi=0)[1]
    assert e == pytest.approx(symmetric, abs=SCREENING)


def test_one_electron(smooth: Functional) -> None:
    """The hydrogen atom: an empty spin channel is no trouble."""
    mol = gto.M(atom="H", spin=1, basis="def2-svp", verbose=0)
    mf = kohn_sham(smooth, mol, "UKS")
    mf.kernel()
    assert mf.converged
    assert mf.e_tot == pytest.approx(-0.5, abs=0.03)  # α̃ ≈ 1 in place of 0 costs that much
    assert np.isfinite(mf.get_veff()).all()


def test_core_potentials(smooth: Functional) -> None:
    mol = gto.M(atom="I 0 0 0; H 0 0 1.61", basis="def2-svp", ecp="def2-svp", verbose=0)
    mf = kohn_sham(smooth, mol, fit=True)
    mf.kernel()
    assert mf.converged


def test_density_is_fitted_in_the_parent_s_auxiliary_basis(smooth: Functional) -> None:
    """PySCF leaves it open while xc has its default, and takes one for exact exchange at last."""
    mol = water_molecule("def2-svp")
    given = dft.RKS(mol).density_fit()
    mf = taufree.deorbitalize(given, smooth)
    assert mf.with_df.auxbasis == dft.RKS(mol, xc="MS2").density_fit().with_df.auxbasis
    assert given.with_df.auxbasis is None
    chosen = taufree.deorbitalize(dft.RKS(mol).density_fit(auxbasis="weigend"), smooth)
    assert chosen.with_df.auxbasis == "weigend"


# --- memory, blocks, order: one integral however it is cut


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, SAME_INTEGRAL), (torch.float32, SAME_INTEGRAL_SINGLE)],
    ids=["float64", "float32"],
)
def test_memory_blocks_and_order_change_nothing(
    monkeypatch: pytest.MonkeyPatch, water_dm: Array, dtype: torch.dtype, tolerance: float
) -> None:
    functional = random_functional(roughness=1.0, dtype=dtype)

    def energy(max_memory: float = 4000, order: Array | None = None) -> float:
        mf = kohn_sham(functional, water_molecule())
        grids = mf.grids.build(with_non0tab=True)
        if order is not None:
            grids.coords, grids.weights = grids.coords[order], grids.weights[order]
            grids.non0tab = grids.screen_index = None
        return float(mf._numint.nr_rks(mf.mol, grids, mf.xc, water_dm, max_memory=max_memory)[1])

    usual = energy()
    assert energy(max_memory=-500) == pytest.approx(usual, abs=tolerance)
    assert energy(max_memory=6) == pytest.approx(usual, abs=tolerance)  # some of it kept
    n_points = len(kohn_sham(functional, water_molecule()).grids.build().weights)
    order = np.random.default_rng(0).permutation(n_points)
    assert energy(order=order) == pytest.approx(usual, abs=tolerance)
    monkeypatch.setattr(atomic_orbitals, "POINTS", 10 * atomic_orbitals.BLKSIZE)
    assert energy() == pytest.approx(usual, abs=tolerance)


def test_orbitals_go_with_their_object(smooth: Functional, water_dm: Array) -> None:
    """At once: a loop over geometries that waits for the garbage collector fills the memory."""
    mf = kohn_sham(smooth, water_molecule())
    mf._numint.nr_rks(mf.mol, mf.grids, mf.xc, water_dm)
    orbitals = weakref.ref(mf._numint._cache.orbitals)
    gc.collect()
    gc.disable()
    try:
        del mf
        assert orbitals() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("tagged", [True, False], ids=["orbitals", "density matrix"])
def test_orbitals_left_out_of_a_block_change_nothing(
    monkeypatch: pytest.MonkeyPatch, rough: Functional, tagged: bool
) -> None:
    near = "O 0 0 0; H 0 0.76 0.58; H 0 -0.76 0.58"
    far = near.replace("O 0", "O 9").replace("H 0", "H 9")
    mol = gto.M(atom=f"{near}; {far}", basis="6-31g", verbose=0)
    dm = mol.RHF().run().make_rdm1()

    def integrals() -> tuple[float, Array, list[int]]:
        mf = kohn_sham(rough, mol)
        _, e, v = mf._numint.nr_rks(mol, mf.grids, mf.xc, dm if tagged else np.array(dm))
        return e, v, [len(block.functions) for block in mf._numint._cache.orbitals._kept]

    e, v, held = integrals()
    monkeypatch.setattr(atomic_orbitals, "THRESHOLD", -1.0)
    e_all, v_all, everything = integrals()
    assert set(everything) == {mol.nao} and min(held) < mol.nao
    assert e == pytest.approx(e_all, abs=SAME_INTEGRAL)
    np.testing.assert_allclose(v, v_all, atol=1e-8)


def test_points_left_out_change_nothing(
    monkeypatch: pytest.MonkeyPatch, rough: Functional, water_dm: Array
) -> None:
    """The threshold's own error, without the margin that a calculation has."""
    monkeypatch.setattr(exchange_correlation, "MARGIN", 1.0)

    def energy_and_points() -> tuple[float, int]:
        mf = kohn_sham(rough, water_molecule())
        e = mf._numint.nr_rks(mf.mol, mf.grids, mf.xc, water_dm)[1]
        return float(e), len(mf._numint._cache.xc._geometry[0])

    e, few = energy_and_points()
    monkeypatch.setattr(exchange_correlation, "POINT_THRESHOLD", 0.0)
    e_all, everything = energy_and_points()
    assert few < everything
    assert e == pytest.approx(e_all, abs=1e-8)


def test_small_memory_keeps_nothing(smooth: Functional, converged: Any) -> None:
    mf = kohn_sham(smooth)
    mf.max_memory = 1  # MB, less than the process has already
    assert mf.kernel() == pytest.approx(converged.e_tot, abs=SAME_INTEGRAL)
    assert not mf._numint._cache.orbitals._kept
    assert converged._numint._cache.orbitals._kept


def test_second_build_reuses_what_depends_on_geometry(rough: Functional, water_dm: Array) -> None:
    mf = kohn_sham(rough, water_molecule())
    ni = mf._numint
    e, v = ni.nr_rks(mf.mol, mf.grids, mf.xc, water_dm)[1:]
    cache, geometry = ni._cache, ni._cache.xc._geometry
    e2, v2 = ni.nr_rks(mf.mol, mf.grids, mf.xc, water_dm)[1:]
    assert ni._cache is cache and cache.xc._geometry is geometry
    assert e2 == e and (v2 == v).all()


def test_density_that_spreads_is_still_seen(rough: Functional, water_dm: Array) -> None:
    """Points that a first, compact density left out count once density arrives there."""
    mol = water_molecule("6-31++g**")
    mf = kohn_sham(rough, mol)
    s = mol.intor("int1e_ovlp")
    core = np.linalg.eigh(s)[1][:, -1:]
    compact = np.zeros_like(s)
    compact[0, 0] = 2.0
    mf._numint.nr_rks(mol, mf.grids, mf.xc, compact)
    few = len(mf._numint._cache.xc._geometry[0])
    spread = core @ core.T
    e = mf._numint.nr_rks(mol, mf.grids, mf.xc, spread)[1]
    assert len(mf._numint._cache.xc._geometry[0]) > few
    fresh = kohn_sham(rough, mol)
    exact = fresh._numint.nr_rks(mol, fresh.grids, fresh.xc, spread)[1]
    assert e == pytest.approx(exact, abs=SAME_INTEGRAL)


def test_single_precision_network_converges_to_the_energy_of_double(converged: Any) -> None:
    """The same weights in float32, to PySCF's conv_tol."""
    functional = random_functional(roughness=1.0, dtype=torch.float32)
    mf, exact = kohn_sham(functional), kohn_sham(functional.double())
    mf.kernel()
    exact.kernel()
    assert mf.converged and mf.cycles <= exact.cycles + 1
    assert mf.e_tot == pytest.approx(exact.e_tot, abs=SCF)
    assert exact.e_tot == pytest.approx(converged.e_tot, abs=1e-5)  # weights rounded to float32


# --- stock features of PySCF


def test_input_object_is_not_changed(smooth: Functional) -> None:
    mf = dft.RKS(water_molecule("sto-3g"))
    new = taufree.deorbitalize(mf, smooth)
    assert mf.xc == "LDA,VWN" and type(mf._numint) is numint.NumInt
    assert new.xc == "MS2" and isinstance(new, type(mf)) and new is not mf


@pytest.mark.parametrize("kind", ["RKS", "UKS"])
@pytest.mark.parametrize(
    "xc", ["MS2", "ms2", "MGGA_X_MS2,GGA_C_REGTPSS", " mgga_x_ms2 , gga_c_regtpss"]
)
def test_the_parents_names_are_accepted(smooth: Functional, kind: str, xc: str) -> None:
    mf = taufree.deorbitalize(KOHN_SHAM[kind](water_molecule("sto-3g"), xc=xc), smooth)
    assert isinstance(mf._numint, host.DeorbitalizedNumInt)


def test_unrestricted_closed_shell_converges_to_the_restricted(
    smooth: Functional, converged: Any
) -> None:
    mf = kohn_sham(smooth, kind="UKS")
    assert mf.kernel() == pytest.approx(converged.e_tot, abs=SCF)


def test_open_shells(smooth: Functional) -> None:
    """UKS is below ROKS, both converge to a doublet."""
    mol = gto.M(atom="N 0 0 0; H 0 0.80 0.51; H 0 -0.80 0.51", basis="sto-3g", spin=1, verbose=0)
    energies = {}
    for kind in ("UKS", "ROKS"):
        mf = kohn_sham(smooth, mol, kind)
        energies[kind] = mf.kernel()
        assert mf.converged
        assert mf.spin_square()[1] == pytest.approx(2, abs=0.05)
    assert -0.02 < energies["UKS"] - energies["ROKS"] < SCF


def test_density_fitting_before_and_after(smooth: Functional, converged: Any) -> None:
    before = kohn_sham(smooth, fit=True)
    after = kohn_sham(smooth).density_fit()
    assert before.kernel() == pytest.approx(after.kernel(), abs=SCF)
    assert before.with_df is not None and after.with_df is not None
    # the def2 fitting error of an atom's Coulomb energy: some 1e-4 hartree
    assert before.e_tot == pytest.approx(converged.e_tot, abs=2e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", ["RKS", "UKS"])
def test_the_same_on_a_gpu(
    smooth: Functional, water_dm: Array, hydroxyl_dms: Array, kind: str
) -> None:
    restricted = kind == "RKS"
    mol, dm = (water_molecule(), water_dm) if restricted else (hydroxyl_radical(), hydroxyl_dms)
    here, there = (kohn_sham(f, mol, kind) for f in (smooth, smooth.to("cuda")))
    builds = (mf.get_veff(mol, dm) for mf in (here, there))
    (v, e), (v_gpu, e_gpu) = ((np.asarray(b), float(b.exc)) for b in builds)
    assert e_gpu == pytest.approx(e, abs=SAME_INTEGRAL_SINGLE)
    np.testing.assert_allclose(v_gpu, v, rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_forces_and_response_on_a_gpu(smooth: Functional, converged: Any) -> None:
    there = kohn_sham(smooth.to("cuda"))
    assert there.kernel() == pytest.approx(converged.e_tot, abs=SAME_INTEGRAL_SINGLE)
    forces = (mf.nuc_grad_method().kernel() for mf in (converged, there))
    np.testing.assert_allclose(*forces, rtol=0, atol=1e-5)
    trial = random_symmetric(converged.make_rdm1().shape)
    answers = (mf.gen_response(hermi=1)(trial) for mf in (converged, there))
    np.testing.assert_allclose(*answers, rtol=0, atol=1e-4)


def test_checkpoint_restart(smooth: Functional, converged: Any, tmp_path: Path) -> None:
    mf = kohn_sham(smooth)
    mf.chkfile = str(tmp_path / "water.chk")
    mf.kernel()
    again = kohn_sham(smooth)
    again.init_guess = "chkfile"
    again.chkfile = mf.chkfile
    assert again.kernel() == pytest.approx(converged.e_tot, abs=SCF)
    assert again.cycles <= 2
    stored = lib.chkfile.load(mf.chkfile, "scf")
    assert stored["e_tot"] == pytest.approx(converged.e_tot, abs=SCF)


def test_level_shift_and_damping(smooth: Functional, converged: Any) -> None:
    for options in ({"level_shift": 0.3}, {"damp": 0.3}, {"diis": scf.EDIIS()}):
        mf = kohn_sham(smooth).set(**options)
        assert mf.kernel() == pytest.approx(converged.e_tot, abs=10 * SCF)
        assert mf.converged


def test_smearing(smooth: Functional, converged: Any) -> None:
    """Cold, it is the plain result; hot, occupations are fractional and add up."""
    cold = scf.addons.smearing(kohn_sham(smooth), sigma=1e-3)
    assert cold.kernel() == pytest.approx(converged.e_tot, abs=SCF)
    hot = scf.addons.smearing(kohn_sham(smooth), sigma=0.2)
    hot.kernel()
    assert hot.converged
    assert hot.mo_occ.sum() == pytest.approx(10, abs=1e-6)
    assert ((hot.mo_occ > 0.01) & (hot.mo_occ < 1.99)).any()
    assert hot.e_free < converged.e_tot < hot.e_tot  # the free energy is what is minimized


def test_solvent_and_relativity(smooth: Functional, converged: Any) -> None:
    for mf in (kohn_sham(smooth).PCM(), kohn_sham(smooth).x2c()):
        mf.kernel()
        assert mf.converged
        assert isinstance(mf._numint, host.DeorbitalizedNumInt)
        assert 1e-4 < abs(mf.e_tot - converged.e_tot) < 0.1


def test_dipole_is_the_derivative_of_the_energy_by_the_field(
    smooth: Functional, converged: Any
) -> None:
    """Hellmann-Feynman: holds only where the potential is the energy's derivative, E minimal."""
    mol = converged.mol
    positions = mol.intor("int1e_r")[2]

    def e(field: float) -> float:
        mf = kohn_sham(smooth)
        hcore = scf.hf.get_hcore(mol) + field * positions
        mf.get_hcore = lambda *_: hcore
        mf.conv_tol = 1e-12
        nuclei = field * (mol.atom_charges() @ mol.atom_coords()[:, 2])
        return float(mf.kernel(converged.make_rdm1()) - nuclei)

    h = 1e-3
    numeric = -(e(h) - e(-h)) / (2 * h)
    dipole = converged.dip_moment(unit="AU", verbose=0)
    assert dipole[2] == pytest.approx(numeric, abs=1e-5)  # h² times the hyperpolarizability
    assert dipole[:2] == pytest.approx([0, 0], abs=1e-6)


def test_janak(smooth: Functional, converged: Any) -> None:
    """∂E/∂n_i = ε_i at fixed orbitals, for the highest occupied one."""
    c = converged.mo_coeff
    homo = converged.mol.nelectron // 2 - 1
    direction = np.outer(c[:, homo], c[:, homo])
    dm = np.array(converged.make_rdm1())
    numeric = directional_derivative(lambda h: converged.energy_elec(dm + h * direction)[0])
    assert numeric == pytest.approx(converged.mo_energy[homo], rel=1e-5)


def test_analyze(converged: Any) -> None:
    (_, charges), dipole = converged.analyze(verbose=0)
    assert np.sum(charges) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(dipole, converged.dip_moment(verbose=0), atol=1e-10)


def test_a_new_geometry_gives_the_fresh_result(smooth: Functional) -> None:
    mf = kohn_sham(smooth)
    mf.kernel()
    stretched = water_molecule("sto-3g").set_geom_(
        1.1 * water_molecule("sto-3g").atom_coords(), unit="Bohr", inplace=False
    )
    fresh = kohn_sham(smooth, stretched)
    fresh.kernel()
    mf.reset(stretched)
    assert mf.kernel() == pytest.approx(fresh.e_tot, abs=SCF)
    scanner = kohn_sham(smooth).as_scanner()
    scanner(water_molecule("sto-3g"))
    assert scanner(stretched) == pytest.approx(fresh.e_tot, abs=SCF)


def test_a_geometry_changed_in_place_is_noticed(smooth: Functional) -> None:
    mol = water_molecule("sto-3g")
    mf = kohn_sham(smooth, mol)
    mf.kernel()
    mol.set_geom_(1.1 * mol.atom_coords(), unit="Bohr")
    mf.reset()
    fresh = kohn_sham(smooth, mol)
    assert mf.kernel() == pytest.approx(fresh.kernel(), abs=SCF)


def test_a_new_grid_is_noticed(smooth: Functional, converged: Any) -> None:
    mf = converged.copy()
    mf.grids = dft.gen_grid.Grids(mf.mol)
    mf.grids.level = 1
    changed = mf.kernel()
    fresh = kohn_sham(smooth)
    fresh.grids.level = 1
    assert changed == pytest.approx(fresh.kernel(), abs=SCF)
    assert abs(changed - converged.e_tot) > 1e-6


# --- what is refused


@pytest.mark.parametrize("kind", ["RKS", "UKS"])
@pytest.mark.parametrize(
    "xc",
    [
        "PBE",
        "B3LYP",
        "SCAN",
        "TPSS",
        "0.25*HF+0.75*MGGA_X_MS2,GGA_C_REGTPSS",
        "MS2,",
        "HF",
        "wB97X_V",
        "no-such-functional",
        "",
    ],
)
def test_other_functionals_are_refused(smooth: Functional, kind: str, xc: str) -> None:
    with pytest.raises(NotImplementedError, match=r"stands for MS2.* set mf.xc = 'MS2'") as caught:
        taufree.deorbitalize(KOHN_SHAM[kind](water_molecule("sto-3g"), xc=xc), smooth)
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [RKSpU, UKSpU])
def test_hubbard_u_is_refused(smooth: Functional, kind: Any) -> None:
    mf = kind(water_molecule("sto-3g"), U_idx=["0 O 2p"], U_val=[1.0])
    with pytest.raises(NotImplementedError, match=r"Hubbard U .* leave it out, or run the parent"):
        taufree.deorbitalize(mf, smooth)


def test_elements_beyond_training_get_a_warning() -> None:
    """Water by a model that knows hydrogen only; ghosts are no elements."""
    functional = random_functional()
    mf = dft.RKS(water_molecule())
    taufree.deorbitalize(mf, functional)  # nothing known of its training: nothing said
    functional.elements = frozenset({"H"})
    with pytest.warns(DomainWarning, match="not trained on O: "):
        taufree.deorbitalize(mf, functional)
    mol = gto.M(atom="H 0 0 0; H 0 0 1; ghost-O 0 1 0", basis="sto-3g", verbose=0)
    taufree.deorbitalize(dft.RKS(mol), functional)


def test_nonlocal_correlation_is_refused(smooth: Functional) -> None:
    mf = dft.RKS(water_molecule("sto-3g"), xc="MS2")
    mf.nlc = "VV10"
    with pytest.raises(NotImplementedError, match=r"VV10.* leave xc unset"):
        taufree.deorbitalize(mf, smooth)


def objects_of_another_kind() -> dict[str, Callable[[], Any]]:
    mol = water_molecule("sto-3g")
    return {
        "GKS": lambda: dft.GKS(mol),
        "DKS": lambda: dft.DKS(mol),
        "RHF": lambda: mol.RHF(),
        "UHF": lambda: mol.UHF(),
        "Mole": lambda: mol,
        "None": lambda: None,
    }


@pytest.mark.parametrize("name", objects_of_another_kind())
def test_objects_of_another_kind_are_refused(smooth: Functional, name: str) -> None:
    with pytest.raises(UnsupportedError, match=r"dft\.RKS\(mol\)"):
        taufree.deorbitalize(objects_of_another_kind()[name](), smooth)


@pytest.mark.parametrize("potential", ["gKS", "KS", ""])
def test_other_potentials_are_refused(smooth: Functional, potential: str) -> None:
    with pytest.raises(UnsupportedError, match="use 'ks' or 'gks'"):
        taufree.deorbitalize(dft.RKS(water_molecule("sto-3g")), smooth, potential=potential)


def test_a_model_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match="No model 'no-such-model'"):
        taufree.deorbitalize(dft.RKS(water_molecule("sto-3g")), model="no-such-model")


def test_changing_xc_afterwards_is_refused(converged: Any) -> None:
    """PBE asked for is not MS2 given."""
    mf = converged.copy()
    mf.xc = "PBE"
    with pytest.raises(UserError, match=r"'PBE'.*stands for MS2"):
        mf.kernel()
    mf.xc = "MS2"
    assert mf.kernel() == pytest.approx(converged.e_tot, abs=SCF)


BEYOND_THE_POTENTIAL: dict[str, Callable[[Any], Any]] = {
    "eval_xc": lambda mf: mf._numint.eval_xc("MS2", np.ones((5, 1))),
    "eval_xc_eff": lambda mf: mf._numint.eval_xc_eff("MS2", np.ones((5, 1))),
    "nonlocal correlation": lambda mf: mf._numint.nr_nlc_vxc(mf.mol, mf.grids, "MS2", None),
}


@pytest.mark.parametrize("kind", ["RKS", "UKS", "density-fitted"])
@pytest.mark.parametrize("name", BEYOND_THE_POTENTIAL)
def test_what_the_potential_cannot_give_is_refused(converged: Any, kind: str, name: str) -> None:
    """Never a number: one sentence that names the way out."""
    mf = {
        "RKS": converged.copy,
        "UKS": converged.to_uks,
        "density-fitted": lambda: converged.density_fit(),
    }[kind]()
    with pytest.raises(NotImplementedError, match=r"dft\.RKS\(mol, xc='MS2'\)") as caught:
        BEYOND_THE_POTENTIAL[name](mf)
    assert isinstance(caught.value, UserError)


def test_an_unknown_pseudopotential_is_warned_of(smooth: Functional) -> None:
    """Of elements that a trained model knows with all electrons only."""
    mol = gto.M(atom="Si", basis="gth-dzvp", pseudo="gth-pade", spin=2, verbose=0)
    with pytest.warns(DomainWarning, match="Si with all electrons: with pseudopotentials"):
        taufree.deorbitalize(dft.UKS(mol), Functional(smooth.network, "trained", ["Si"]))
    taufree.deorbitalize(dft.UKS(mol), Functional(smooth.network, "trained", ["Si"], ["Si"]))
    with pytest.warns(DomainWarning) as caught:  # of what is not known at all, that alone is said
        taufree.deorbitalize(dft.UKS(mol), Functional(smooth.network, "trained", ["H"]))
    assert len(caught) == 1 and "not trained on Si" in str(caught[0].message)
