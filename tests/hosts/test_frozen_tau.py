"""potential="gks": the parent's partial derivatives at τ̃, applied as PySCF applies a meta-GGA's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pyscf import dft
from pyscf.dft import numint
from pyscf.pbc import dft as pbcdft
from pyscf.pbc import gto

import taufree
from networks import random_functional
from reference import hydroxyl_radical, water_molecule
from taufree.errors import UnsupportedError
from taufree.functional import Functional
from tolerances import SAME_INTEGRAL, SCREENING

Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def smooth() -> Functional:
    """α̃ ≈ 1 with some variation: an SCF converges as it does for a GGA."""
    return random_functional(roughness=1.0)


def generalized(functional: Functional, mf: Any) -> Any:
    mf.grids.level = 0
    return taufree.deorbitalize(mf, functional, potential="gks")


def knows_tau(monkeypatch: pytest.MonkeyPatch, mf: Any, dms: Array, functional: Functional) -> None:
    """Let the functional give the τ of orbitals, so that nothing is left of the network."""
    grids = mf.grids.build(with_non0tab=True)
    ao = numint.eval_ao(mf.mol, grids.coords, deriv=1)
    fields = [numint.eval_rho(mf.mol, ao, dm, xctype="MGGA", with_lapl=False) for dm in dms]
    scaled = torch.from_numpy(len(dms) * np.array(fields))

    def tau(rho: torch.Tensor, *_: Any) -> torch.Tensor:
        points = mf._numint._cache.xc._geometry[0]
        same = [f[:, points] for f in scaled if torch.allclose(f[0, points], rho)]
        return same[0][4]

    monkeypatch.setattr(functional, "tau", tau)


@pytest.mark.parametrize("parent", ["ms2", "r2scan"])
def test_with_the_orbitals_tau_it_is_the_parent(
    monkeypatch: pytest.MonkeyPatch, parent: str
) -> None:
    """Energy and matrix are those of PySCF's own meta-GGA, closed and open shells."""
    functional = random_functional(roughness=1.0, parent=parent)
    plain, xc = numint.NumInt(), functional.parent.xc

    mf = generalized(functional, dft.RKS(water_molecule()))
    dm = np.array(mf.mol.RHF().run().make_rdm1())
    knows_tau(monkeypatch, mf, dm[None], functional)
    n, e, v = mf._numint.nr_rks(mf.mol, mf.grids, xc, dm)
    exact = plain.nr_rks(mf.mol, mf.grids, xc, dm)
    assert n == pytest.approx(exact[0], abs=SAME_INTEGRAL)
    assert e == pytest.approx(exact[1], abs=1e-7)  # the points below RHO_THRESHOLD
    np.testing.assert_allclose(v, exact[2], rtol=0, atol=1e-6)

    mf = generalized(functional, dft.UKS(hydroxyl_radical()))
    dms = np.array(mf.mol.UHF().run().make_rdm1())
    knows_tau(monkeypatch, mf, dms, functional)
    _, e, v = mf._numint.nr_uks(mf.mol, mf.grids, xc, dms)
    exact = plain.nr_uks(mf.mol, mf.grids, xc, dms)
    assert e == pytest.approx(exact[1], abs=1e-7)
    np.testing.assert_allclose(v, exact[2], rtol=0, atol=1e-6)


def test_same_energy_other_potential(smooth: Functional) -> None:
    mf = generalized(smooth, dft.RKS(water_molecule("sto-3g")))
    ks = taufree.deorbitalize(mf, smooth)
    assert (mf.potential, ks.potential) == ("gks", "ks")
    dm = np.array(mf.mol.RHF().run().make_rdm1())
    where = mf.mol, mf.grids, mf.xc, dm
    _, e, v = mf._numint.nr_rks(*where)
    _, e_ks, v_ks = ks._numint.nr_rks(*where)
    assert e == pytest.approx(e_ks, abs=SAME_INTEGRAL)
    assert np.abs(v - v_ks).max() > 1e-3
    np.testing.assert_allclose(v, v.T, rtol=0, atol=1e-13)
    # dense and screened contractions are one
    grids = mf.grids.copy()
    grids.non0tab = grids.screen_index = None
    dense = mf._numint.nr_rks(mf.mol, grids, mf.xc, dm)[2]
    np.testing.assert_allclose(v, dense, rtol=0, atol=SCREENING)


@pytest.mark.parametrize("kind", ["RKS", "UKS", "density-fitted"])
def test_converges_above_the_variational_energy(smooth: Functional, kind: str) -> None:
    mol = hydroxyl_radical("sto-3g") if kind == "UKS" else water_molecule("sto-3g")
    mf = dft.RKS(mol).density_fit() if kind == "density-fitted" else getattr(dft, kind)(mol)
    mf = generalized(smooth, mf)
    ks = taufree.deorbitalize(mf, smooth)
    mf.kernel()
    ks.kernel(mf.make_rdm1())  # from there: a radical's π hole has no preferred direction
    assert mf.converged and ks.converged
    assert 0 < mf.e_tot - ks.e_tot < 0.05


# --- what is refused


REFUSED: dict[str, Callable[[Any], Any]] = {
    "TDDFT": lambda mf: mf.TDDFT().kernel(),
    "newton": lambda mf: mf.newton().kernel(),
    "stability": lambda mf: mf.stability(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_the_energys_derivative_is_refused(smooth: Functional, name: str) -> None:
    mf = generalized(smooth, dft.RKS(water_molecule("sto-3g")))
    mf.kernel()
    with pytest.raises(UnsupportedError, match="not available for"):
        REFUSED[name](mf)


def test_crystals_are_refused(smooth: Functional) -> None:
    cell = gto.M(a=4 * np.eye(3), atom="He 0 0 0", basis="sto-3g", verbose=0)
    with pytest.raises(UnsupportedError, match=r"for molecules; use potential='ks'"):
        generalized(smooth, pbcdft.KRKS(cell))
