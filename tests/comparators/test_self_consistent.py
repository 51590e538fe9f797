"""Comparators as functionals: V_xc is the gradient of E_xc, in molecules and in crystals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyscf import gto
from pyscf.dft import UKS
from pyscf.pbc import dft as pbc_dft
from pyscf.pbc import gto as pbc_gto

from taufree.comparators.expert_transformers import ExpertTransformers
from taufree.comparators.integrator import RivalKNumInt, RivalNumInt, attach
from taufree.comparators.self_consistent import Learned, Recipe, Rival, load
from taufree.comparators.trained import Architecture, Comparator
from taufree.data.systems import registry
from taufree.errors import UnsupportedError, UserError
from taufree.evaluation import scf
from taufree.model.storage import save_model
from taufree.physics.kinetic import DEORBITALIZERS

STEP = 1e-4
FRAME_NOISE = 1e-7  # relative: inputs compressed by arsinh are steep at small densities


def learned(kind: str, **sizes: int) -> Comparator:
    torch.manual_seed(5)
    return Comparator(Architecture(comparator=kind, network=sizes).build(), kind)  # type: ignore[arg-type]


RIVALS: dict[str, Rival] = {
    **{name: Recipe(name) for name in DEORBITALIZERS},
    "linear attention": Learned(learned("linear_attention", width=8, n_blocks=2)),
    "transformers": Learned(
        learned("expert_transformers", width=8, n_layers=1, n_heads=2, chunk=700)
    ),
}


@pytest.fixture(scope="module")
def bent() -> Any:
    """Bent NH2, turned out of the axes: no symmetry fixes its frame."""
    mol = gto.M(atom="N 0 0 0; H 0.3 0.9 0.2; H -0.8 0.1 0.7", basis="6-31g", spin=1, verbose=0)
    mf = UKS(mol, xc="MS2")
    mf.grids.level, mf.max_cycle = 0, 3
    mf.kernel()
    return mf


def slope_error(
    integrator: Any, arguments: tuple[Any, ...], dms: np.ndarray, direction: np.ndarray
) -> float:
    """Of ∂E_xc along a direction, by V_xc, beside finite differences; relative."""
    v = integrator.xc(*arguments, dms)[2]
    up, down = (integrator.xc(*arguments, dms + h * direction)[1] for h in (STEP, -STEP))
    expected = np.einsum("skij,skji->", v, direction).real / dms.shape[1]
    return float(abs((up - down) / (2 * STEP) / expected - 1))


@pytest.mark.parametrize("name", RIVALS)
def test_potential_is_the_gradient_of_the_energy(name: str, bent: Any) -> None:
    dms = np.asarray(bent.make_rdm1())[:, None]
    random = np.random.default_rng(0).standard_normal(dms.shape)
    direction = 0.1 * (random + random.swapaxes(2, 3)) * abs(dms)
    error = slope_error(RivalNumInt(RIVALS[name]), (bent.mol, bent.grids), dms, direction)
    assert error < FRAME_NOISE


def test_a_closed_shell_is_one_of_two_equal_spins() -> None:
    mol = gto.M(atom="Ne", basis="6-31g", verbose=0)
    mf = mol.RKS(xc="MS2")
    mf.grids.level = 0
    mf.kernel()
    dm, integrator = mf.make_rdm1(), RivalNumInt(Recipe("PCopt"))
    n, e, v = integrator.nr_rks(mol, mf.grids, "MS2", dm)
    both = integrator.nr_uks(mol, mf.grids, "MS2", np.array([dm, dm]) / 2)
    assert both[0] == pytest.approx([n / 2, n / 2]) and both[1] == pytest.approx(e, rel=1e-12)
    assert both[2] == pytest.approx(np.array([v, v]), abs=1e-10)


def test_orbitals_that_do_not_reach_a_block_are_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    mol = gto.M(atom="Ne 0 0 0; O 0 0 8; H 0 0.8 8.6; H 0 -0.8 8.6", basis="6-31g", verbose=0)
    mf = mol.RKS(xc="MS2")
    mf.grids.level, mf.max_cycle = 0, 2
    mf.kernel()
    dm = np.asarray(mf.make_rdm1())[None, None]
    integrator = RivalNumInt(Recipe("PCopt"))
    monkeypatch.setattr("taufree.comparators.integrator.BLOCK_MB", 1)
    held = [len(block.held) for block in integrator.blocks(mol, mf.grids, None, 4000)]
    assert min(held) < mol.nao == max(held)
    found = integrator.xc(mol, mf.grids, dm)
    monkeypatch.setattr("taufree.comparators.integrator.NEGLIGIBLE", -1.0)
    expected = RivalNumInt(Recipe("PCopt")).xc(mol, mf.grids, dm)
    assert found[1] == pytest.approx(expected[1], abs=1e-9)
    assert found[2] == pytest.approx(expected[2], abs=1e-8)


@pytest.fixture(scope="module")
def crystal() -> Any:
    cell = pbc_gto.M(
        atom="He 0 0 0; H 1.0 1.1 0.9", a=np.eye(3) * 2.6, basis="6-31g", charge=1, verbose=0
    )
    mf = pbc_dft.KRKS(cell, cell.make_kpts([2, 1, 3]), xc="MS2")
    mf.grids = pbc_dft.BeckeGrids(cell)
    mf.grids.level = 0
    mf.grids.build()
    return mf


@pytest.mark.parametrize("name", ["PCopt", "linear attention"])
def test_in_a_crystal_too(name: str, crystal: Any) -> None:
    dms = np.asarray(crystal.get_init_guess())[None]
    assert abs(dms.imag).max() < 1e-12
    random = np.random.default_rng(1)
    parts = random.standard_normal((2, *dms.shape))
    direction = (parts[0] + parts[0].swapaxes(2, 3)) * abs(dms)
    direction = 0.1 * (direction + 1j * (parts[1] - parts[1].swapaxes(2, 3)) * abs(dms))
    integrator = RivalKNumInt(RIVALS[name])
    arguments = crystal.cell, crystal.grids
    kpts = crystal.kpts

    class AtK:
        def xc(self, cell: Any, grids: Any, d: np.ndarray) -> Any:
            return integrator.xc(cell, grids, d.astype(complex), kpts)

    assert slope_error(AtK(), arguments, dms, direction) < FRAME_NOISE


def test_pairs_of_k_points_are_the_whole_mesh(crystal: Any) -> None:
    dms = np.asarray(crystal.get_init_guess())
    integrator = RivalKNumInt(Recipe("GE2"))
    half = integrator.nr_rks(crystal.cell, crystal.grids, "MS2", dms, kpts=crystal.kpts)
    integrator = RivalKNumInt(Recipe("GE2"))
    n, e, v = integrator.xc(crystal.cell, crystal.grids, dms[None].astype(complex), crystal.kpts)
    assert half[0] == pytest.approx(n[0]) and half[1] == pytest.approx(e, rel=1e-12)
    assert half[2] == pytest.approx(v[0], abs=1e-10)


def test_what_there_is_not_is_refused(crystal: Any) -> None:
    dms, integrator = np.asarray(crystal.get_init_guess()), RivalKNumInt(Recipe("GE2"))
    with pytest.raises(UnsupportedError, match="between its k-points"):
        integrator.nr_rks(
            crystal.cell, crystal.grids, "MS2", dms, kpts=crystal.kpts, kpts_band=crystal.kpts[:1]
        )
    mf = attach(gto.M(atom="He", verbose=0).RKS(xc="MS2"), Recipe("GE2"))
    for forces in (mf.nuc_grad_method, mf.Gradients):
        with pytest.raises(UnsupportedError, match="no forces"):
            forces()


def test_an_atom_in_a_large_cell_is_an_atom() -> None:
    basis = {"He": "6-31g"}
    mol = gto.M(atom="He", basis=basis, verbose=0)
    cell = pbc_gto.M(atom="He", basis=basis, a=np.eye(3) * 8, verbose=0)
    alone = mol.RKS(xc="MS2").density_fit()
    dm = np.asarray(alone.get_init_guess())
    alone.grids.build()
    grids = pbc_dft.BeckeGrids(cell).build()
    expected = RivalNumInt(Recipe("PCopt")).nr_rks(mol, alone.grids, "MS2", dm)
    kpts = np.zeros((1, 3))
    found = RivalKNumInt(Recipe("PCopt")).nr_rks(cell, grids, "MS2", dm[None], kpts=kpts)
    assert found[1] == pytest.approx(expected[1], abs=1e-5)
    assert found[2][0] == pytest.approx(expected[2], abs=1e-5)


def test_recipes_are_rows_of_every_self_consistent_table(tmp_path: Path) -> None:
    systems = [replace(registry()[name], basis="sto-3g") for name in ("LiH", "Be")]
    result = scf.evaluate("PCopt", systems=systems, level=0, out=tmp_path, workers=1)
    assert result["model"] == "PCopt" and result["summary"]["converged"] == 1
    assert 1 < result["summary"]["mean_de_total_mha"] < 100
    assert result["systems"][0]["atomization_kcal"] is not None
    with pytest.raises(UserError, match="potential='ks' alone"):
        scf.evaluate("PCopt", systems=systems, potential="gks")


def test_what_runs_and_what_does_not(tmp_path: Path) -> None:
    network = learned("linear_attention", width=8, n_blocks=1).network
    save_model(tmp_path / "other.safetensors", network, {})
    assert isinstance(load(tmp_path / "other.safetensors"), Learned)
    assert not isinstance(load("ms2"), Rival)
    with pytest.raises(UserError, match=r"No model 'PCop'.*recipes are TFvW"):
        load("PCop")
    config = Architecture(comparator="linear_attention", parent="r2scan", network={"width": 8})
    with pytest.raises(UserError, match="ms2 alone"):
        Learned(Comparator(config.build(), "r2scan"))
    assert isinstance(
        Learned(learned("expert_transformers", width=8, n_heads=2)).network, ExpertTransformers
    )
