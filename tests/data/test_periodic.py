from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pyscf.pbc import dft

from networks import random_functional
from taufree.data import periodic
from taufree.data.generate import (
    GridError,
    NotConvergedError,
    calculate,
    converge_parent,
    grid_record,
    mean_field,
)
from taufree.data.orbitals import factor
from taufree.data.store import digest, iter_records, write_manifest, write_record
from taufree.data.systems import Periodicity, System, registry
from taufree.evaluation.errors import errors, model_alpha

LEVEL = 0
ELECTRONS = 1e-3  # relative error of ∫ρ of a compact atom on grid level 0
EXCHANGE = 1e-6  # hartree
UNIFORM = 1e-4  # hartree, between integrals and grids of two kinds
ROUNDING = 1e-12
SIDE = 4.5  # bohr

CUBE = ((SIDE, 0.0, 0.0), (0.0, SIDE, 0.0), (0.0, 0.0, SIDE))
HELIUM = System(
    "He-cubic",
    ("He",),
    ((0.3, 0.2, 0.1),),
    basis="sto-3g",
    kind="crystals",
    period=Periodicity(CUBE, (1, 1, 2)),
)
HYDROGEN = replace(
    HELIUM,
    name="H-cubic",
    symbols=("H",),
    period=Periodicity(CUBE, (1, 1, 2), smearing=0.01, moments=(1.0,)),
)


def test_record_is_the_density_and_exchange_of_pyscf() -> None:
    mf = converge_parent(HELIUM)
    (record,) = grid_record(mf, [factor(dm := mf.make_rdm1())], LEVEL, "MS2")
    rho, tau, weights = record["rho"], record["tau"], record["weights"]
    assert all(np.isfinite(values).all() for values in record.values())
    assert rho[0] @ weights == pytest.approx(2, rel=ELECTRONS)
    tau_w = np.sum(record["grad_rho"] ** 2, axis=-1) / (8 * rho)
    assert np.all(tau >= tau_w - ROUNDING)
    grids = mf.grids
    grids.level = LEVEL
    grids.build()
    expected = periodic.numint.KNumInt().nr_rks(mf.cell, grids, "MGGA_X_MS2", dm, kpts=mf.kpts)[1]
    assert record["exc"][0] @ weights == pytest.approx(expected, abs=EXCHANGE)


def test_doubled_cell_has_the_same_exchange() -> None:
    single = calculate(HELIUM, (LEVEL,)).densities["converged", LEVEL]
    assert HELIUM.period
    x, y, z = HELIUM.positions[0]
    double = replace(
        HELIUM,
        symbols=("He", "He"),
        positions=((x, y, z), (x, y, z + SIDE)),
        period=replace(HELIUM.period, vectors=(*CUBE[:2], (0.0, 0.0, 2 * SIDE)), mesh=(1, 1, 1)),
    )
    pair = calculate(double, (LEVEL,)).densities["converged", LEVEL]
    e_x = [arrays["exc"][0] @ arrays["weights"] for arrays in (single, pair)]
    assert e_x[1] == pytest.approx(2 * e_x[0], rel=ELECTRONS)  # two coarse grids


def test_magnetic_crystal_has_the_density_of_its_moment() -> None:
    arrays = calculate(HYDROGEN, (1,)).densities["converged", 1]
    up, down = arrays["rho"] @ arrays["weights"]
    assert up + down == pytest.approx(1, rel=2 * ELECTRONS)  # and a diffuse one
    assert up - down > 0.5  # atoms 4.5 bohr apart


def test_remembered_orbitals_change_nothing() -> None:
    mf = converge_parent(HELIUM)
    again = mean_field(HELIUM)
    again._numint = periodic.numint.KNumInt()
    assert again.kernel() == pytest.approx(mf.e_tot, abs=ROUNDING)


def test_failures_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(periodic, "MAX_CYCLES", 1)
        with pytest.raises(NotConvergedError, match="1 cycles"):
            calculate(HELIUM, (LEVEL,))
    with monkeypatch.context() as patch:
        patch.setattr(periodic, "MAX_SECONDS", 0.0)
        with pytest.raises(TimeoutError, match="processor time"):
            calculate(HELIUM, (LEVEL,))
    monkeypatch.setattr("taufree.data.generate.MISSING", 0.0)
    with pytest.raises(GridError, match="of 2 electrons"):
        calculate(HELIUM, (LEVEL,))


def test_pseudopotentials_agree_with_their_uniform_grid() -> None:
    """Density fitting and Becke grids in place of the Fourier grid that PySCF would take."""
    assert HELIUM.period
    period = replace(HELIUM.period, pseudo="gth-pbe")
    system = replace(HELIUM, basis="gth-dzvp-molopt-sr", period=period)
    mf = mean_field(system)
    assert isinstance(mf.grids, dft.BeckeGrids)
    mf.grids.level = 3
    uniform = dft.KRKS(mf.cell, mf.kpts, xc=system.parent).run().e_tot
    assert mf.kernel() == pytest.approx(uniform, abs=UNIFORM)
    silicon = mean_field(registry()["Si-diamond-gth"])
    assert silicon.cell.nelectron == registry()["Si-diamond-gth"].n_electrons == 8
    assert registry()["Si-diamond"].n_electrons == 28


def test_lattice_reaches_the_functional_through_the_store(tmp_path: Path) -> None:
    record = calculate(HELIUM, (LEVEL,))
    entry = replace(write_record(tmp_path, record, digest(HELIUM, (LEVEL,))), formula="He(s)")
    write_manifest(tmp_path, {entry.name: entry})
    [loaded] = iter_records(tmp_path, split="train")
    lattice = loaded.density.lattice
    assert lattice is not None
    assert lattice.tolist() == [list(row) for row in CUBE]
    assert loaded.n_electrons == 2

    # α̃ at a point is that at its image: the tokens' images are seen
    functional = random_functional()
    alpha, _ = model_alpha(functional, loaded.density)
    coords = loaded.density.coords.clone()
    coords[::3] += lattice[1] - lattice[0]
    moved = replace(loaded.density, coords=coords)
    torch.testing.assert_close(model_alpha(functional, moved)[0], alpha, rtol=1e-9, atol=1e-9)
    assert errors(loaded, alpha)["l1_mha"] > 0
