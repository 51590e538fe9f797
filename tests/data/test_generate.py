from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pyscf import dft, scf

from taufree.data.generate import (
    Array,
    NotConvergedError,
    calculate,
    converge_parent,
    grid_record,
    parent_exchange,
)
from taufree.data.orbitals import factor, rotated
from taufree.data.systems import System

LEVEL = 1
ELECTRONS = 1e-4  # relative error of ∫ρ on grid level 1
EXCHANGE = 1e-6  # hartree
ROUNDING = 1e-12

Small = Callable[..., System]


def record_of(mf: Any, level: int = LEVEL) -> dict[str, Array]:
    return grid_record(mf, [factor(mf.make_rdm1())], level, "MS2")[0]


@pytest.mark.parametrize("name", ["H", "H2", "LiH", "H2O", "NH2", "Mg+2"])
def test_record_is_the_density_and_exchange_of_pyscf(small: Small, name: str) -> None:
    system = small(name)
    mf = converge_parent(system)
    dm = mf.make_rdm1()
    record = record_of(mf)
    rho, tau, weights = record["rho"], record["tau"], record["weights"]
    n_spin = 2 if system.spin else 1
    assert rho.shape == (n_spin, len(weights))
    assert all(np.isfinite(values).all() for values in record.values())

    electrons = [(system.n_electrons + s * system.spin) / n_spin for s in (1, -1)[:n_spin]]
    np.testing.assert_allclose(rho @ weights, electrons, rtol=ELECTRONS)

    tau_w = np.sum(record["grad_rho"] ** 2, axis=-1) / (8 * np.maximum(rho, 1e-300))
    assert np.all(tau >= tau_w - ROUNDING)

    grids = dft.gen_grid.Grids(mf.mol)
    grids.level = LEVEL
    nr = mf._numint.nr_uks if system.spin else mf._numint.nr_rks
    expected = nr(mf.mol, grids, "MGGA_X_MS2", dm)[1]
    e_x = np.sum(record["exc"] @ weights) / n_spin
    assert e_x == pytest.approx(expected, abs=EXCHANGE)


def test_laplacian_integrates_to_zero(small: Small) -> None:
    record = record_of(converge_parent(small("H2")), 3)
    # ∫∇²ρ = 0: the flux of ∇ρ vanishes far away; |∇²ρ| integrates to a few bohr⁻²
    assert abs(record["lapl"][0] @ record["weights"]) < 1e-2


def test_spin_scaling_agrees_with_spin_polarized_libxc(small: Small) -> None:
    record = record_of(converge_parent(small("NH2")))
    rho, grad, tau = record["rho"], record["grad_rho"], record["tau"]
    inside = np.all(rho > 1e-6, axis=0)  # libxc cuts each form off at its own threshold
    fields = [np.vstack([n, g.T, t]) for n, g, t in zip(rho, grad, tau, strict=True)]
    exc, (vrho, vsigma, _, vtau) = dft.libxc.eval_xc("MGGA_X_MS2", fields, spin=1, deriv=1)[:2]
    for polarized, scaled in [
        (exc * rho.sum(axis=0), record["exc"].sum(axis=0) / 2),
        (vrho.T, record["vrho"]),
        (vsigma.T[::2], 2 * record["vsigma"]),  # ½ ∂e_x(4σ↑↑)/∂σ↑↑ = 2 vsigma
        (vtau.T, record["vtau"]),
    ]:
        np.testing.assert_allclose(scaled[..., inside], polarized[..., inside], rtol=1e-8)


def test_empty_spin_channel_has_no_exchange(small: Small) -> None:
    record = record_of(converge_parent(small("H")))
    for key in ("rho", "tau", "exc", "vrho", "vsigma", "vtau"):
        assert not record[key][1].any(), key


def test_uniform_gas_limit_is_lda() -> None:
    rho = np.array([[1e-3, 1.0, 10.0]])
    tau_unif = 0.3 * (3 * np.pi**2) ** (2 / 3) * rho ** (5 / 3)
    exc = parent_exchange(rho, np.zeros((1, 3, 3)), tau_unif, "MS2")["exc"]
    np.testing.assert_allclose(exc, -0.75 * (3 / np.pi) ** (1 / 3) * rho ** (4 / 3), rtol=1e-10)


def test_iterates_approach_the_converged_density(small: Small) -> None:
    record = calculate(small("LiH"), (LEVEL, LEVEL + 1))
    assert record.cycles == converge_parent(small("LiH")).cycles
    kinds = ["initial", "cycle1", "cycle2", "cycle3", "converged"]
    responses = ["response1", "response2", "rotated1", "rotated2", "rotated3"]
    expected = [*((kind, LEVEL) for kind in kinds + responses), ("converged", LEVEL + 1)]
    assert sorted(record.densities) == sorted(expected)
    exchange = [_exchange(record.densities[kind, LEVEL]) for kind in kinds]
    error = np.abs(np.array(exchange) - exchange[-1])
    assert error[3] < error[1]  # DIIS need not be monotonic in between
    for kind in kinds[1:] + responses:
        arrays = record.densities[kind, LEVEL]
        np.testing.assert_allclose(arrays["rho"] @ arrays["weights"], 4, rtol=ELECTRONS)


def test_turned_orbitals_are_orthonormal_and_rise_as_they_should(small: Small) -> None:
    """To second order the orbital energies rise by tr F (D − D₀), 1 to 32 mHa an electron."""
    mf = converge_parent(small("LiH"))
    converged, overlap = mf.make_rdm1(), mf.get_ovlp()
    for seed in range(3):
        dm = rotated(mf, np.random.default_rng(seed))
        np.testing.assert_allclose(dm @ overlap @ dm, 2 * dm, atol=1e-10)
        rise = float(np.sum(mf.get_fock() * (dm - converged)))
        assert 0.8 * 1e-3 * 4 < rise < 10**-1.5 * 4


def _exchange(arrays: dict[str, Array]) -> float:
    return float(np.sum(arrays["exc"] @ arrays["weights"])) / len(arrays["exc"])


def test_field_does_the_work_of_the_dipole(small: Small) -> None:
    lih = small("LiH")
    dipole = converge_parent(lih).dip_moment(unit="au", verbose=0)
    field = (0.0006, 0.0, 0.0008)
    energies = [
        converge_parent(replace(lih, field=(sign * field[0], 0.0, sign * field[2]))).e_tot
        for sign in (1, -1)
    ]
    # E(F) = E − μ·F − ½ F·α·F + O(F³)
    assert (energies[0] - energies[1]) / 2 == pytest.approx(-dipole @ field, rel=1e-3)


def test_level_shift_rescues_what_diis_leaves(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = converge_parent(small("LiH")).e_tot
    monkeypatch.setattr(scf.hf.SCF, "max_cycle", 2)
    assert converge_parent(small("LiH")).e_tot == pytest.approx(expected, abs=1e-7)


def test_second_order_rescues_the_rest(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = converge_parent(small("LiH")).e_tot
    monkeypatch.setattr(scf.hf, "kernel", never_converged(scf.hf.kernel))
    assert converge_parent(small("LiH")).e_tot == pytest.approx(expected, abs=1e-7)


def test_failure_to_converge_is_an_error(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scf.hf, "kernel", never_converged(scf.hf.kernel))
    stuck = SimpleNamespace(mo_coeff=None, mo_occ=None, kernel=lambda *_: None, converged=False)
    monkeypatch.setattr(scf.hf.SCF, "newton", lambda _: stuck)
    with pytest.raises(NotConvergedError):
        converge_parent(small("LiH"))


def never_converged(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """PySCF's SCF loop with its first result, the flag of convergence, turned to False."""
    return lambda *args, **kwargs: (False, *kernel(*args, **kwargs)[1:])
