"""The deorbitalized layer: every road from one object to another keeps it or is closed."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from pyscf import dft, scf
from pyscf.df.df_jk import _DFHF
from pyscf.dft import numint
from pyscf.pbc import dft as pbcdft
from pyscf.pbc import gto

import taufree
from networks import random_functional
from reference import hydroxyl_radical, water_molecule
from taufree.errors import UnsupportedError, UserError
from taufree.functional import Functional
from taufree.hosts.integrator import Deorbitalizing
from taufree.hosts.mean_field import Deorbitalized
from tolerances import SCF


@pytest.fixture(scope="module")
def smooth() -> Functional:
    """α̃ ≈ 1 with some variation: an SCF converges as it does for a GGA."""
    return random_functional(roughness=1.0)


def water(kind: Callable[..., Any] = dft.RKS, **options: Any) -> Any:
    mf = kind(water_molecule("sto-3g", **options))
    mf.grids.level = 0
    return mf


@pytest.fixture(scope="module")
def converged(smooth: Functional) -> Any:
    """Read only: take a copy to change it."""
    mf = taufree.deorbitalize(water(), smooth)
    mf.kernel()
    assert mf.converged
    return mf


@pytest.fixture(scope="module")
def fitted(smooth: Functional) -> Any:
    mf = taufree.deorbitalize(water().density_fit(), smooth)
    mf.kernel()
    return mf


def assert_deorbitalized(mf: Any) -> None:
    assert isinstance(mf, Deorbitalized)
    assert isinstance(mf._numint, Deorbitalizing)


# --- roads that keep the surrogate


def test_the_object_is_still_of_its_kind(converged: Any, fitted: Any) -> None:
    assert type(converged).__name__ == "DeorbitalizedRKS"
    assert isinstance(converged, dft.rks.RKS) and converged.istype("RKS")
    assert type(fitted).__name__ == "DeorbitalizedDFRKS" and isinstance(fitted, _DFHF)
    assert converged.functional.parent.xc == converged.xc == "MS2"


KEPT: dict[str, Callable[[Any], Any]] = {
    "copy": lambda mf: mf.copy(),
    "view": lambda mf: mf.view(type(mf)),
    "pickle": lambda mf: pickle.loads(pickle.dumps(mf)),
    "to_uks": lambda mf: mf.to_uks(),
    "to_uks, to_rks": lambda mf: mf.to_uks().to_rks(),
    "to_ks": lambda mf: mf.to_ks(),
    "to_ks of the parent": lambda mf: mf.to_ks("MS2"),
    "convert_to_uhf": scf.addons.convert_to_uhf,
    "convert_from_": lambda mf: mf.copy().convert_from_(water().run()),
    "density_fit and back": lambda mf: mf.density_fit().undo_df(),
    "PCM and back": lambda mf: mf.PCM().undo_solvent(),
    "newton and back": lambda mf: mf.newton().undo_newton(),
    "reset": lambda mf: mf.copy().reset(),
    "again": lambda mf: taufree.deorbitalize(mf, mf.functional),
    "as_scanner": lambda mf: mf.as_scanner().undo_scanner(),
}


@pytest.mark.parametrize("road", KEPT)
def test_conversions_that_change_nothing(converged: Any, road: str) -> None:
    other = KEPT[road](converged)
    assert_deorbitalized(other)
    assert other.kernel() == pytest.approx(converged.e_tot, abs=SCF)


@pytest.mark.parametrize("road", ["to_uks", "to_uks, to_rks", "copy", "again", "newton and back"])
def test_density_fitted_objects_stay_fitted(fitted: Any, road: str) -> None:
    other = KEPT[road](fitted)
    assert_deorbitalized(other)
    assert isinstance(other, _DFHF)
    assert other.kernel() == pytest.approx(fitted.e_tot, abs=SCF)


def test_density_fitting_before_and_after_make_one_class(smooth: Functional, fitted: Any) -> None:
    after = taufree.deorbitalize(water(), smooth).density_fit()
    assert type(after) is type(fitted)
    assert after.kernel() == pytest.approx(fitted.e_tot, abs=SCF)
    assert type(after.density_fit(auxbasis="weigend")) is type(fitted)


LAYERS: dict[str, Callable[[Any], Any]] = {
    "solvent": lambda mf: mf.PCM(),
    "relativity": lambda mf: mf.sfx2c1e(),
    "smearing": lambda mf: scf.addons.smearing(mf, sigma=0.1),
}


@pytest.mark.parametrize("fit", [False, True], ids=["", "density-fitted"])
@pytest.mark.parametrize("layer", LAYERS)
def test_other_layers_go_on_top_before_or_after(
    smooth: Functional, converged: Any, layer: str, fit: bool
) -> None:
    """They add to energy and forces of what is below them."""
    mf = water().density_fit() if fit else water()
    before = taufree.deorbitalize(LAYERS[layer](mf), smooth)
    after = LAYERS[layer](taufree.deorbitalize(mf, smooth))
    for other in (before, after):
        assert_deorbitalized(other)
        order = type(other).__mro__
        assert order.index(Deorbitalized) > 1
        assert not fit or order.index(Deorbitalized) < order.index(_DFHF)
    assert before.kernel() == pytest.approx(after.kernel(), abs=SCF)
    assert abs(before.e_tot - converged.e_tot) > 1e-4


def test_fitting_on_top_of_a_solvent(smooth: Functional) -> None:
    mf = taufree.deorbitalize(water().PCM(), smooth).density_fit()
    usual = taufree.deorbitalize(water().density_fit(), smooth).PCM()
    assert_deorbitalized(mf)
    assert mf.kernel() == pytest.approx(usual.kernel(), abs=SCF)


def test_symmetric_molecules(smooth: Functional, converged: Any) -> None:
    for kind in (dft.RKS, dft.UKS):
        mf = taufree.deorbitalize(water(kind, symmetry=True), smooth)
        assert mf.kernel() == pytest.approx(converged.e_tot, abs=SCF)
    assert mf.to_rks().kernel() == pytest.approx(converged.e_tot, abs=SCF)


def test_open_shells_convert(smooth: Functional) -> None:
    mf = dft.UKS(hydroxyl_radical("sto-3g"))
    mf.grids.level = 0
    mf = taufree.deorbitalize(mf, smooth)
    roks = mf.to_rks()
    assert_deorbitalized(roks)
    assert isinstance(roks, dft.roks.ROKS)
    assert roks.kernel() >= mf.kernel() - SCF


def test_hartree_fock_is_hartree_fock(converged: Any, fitted: Any) -> None:
    """to_hf() asks for another theory, by name."""
    exact = water_molecule("sto-3g").RHF().kernel()
    for other in (converged.to_hf(), converged.to_rhf(), converged.to_uhf()):
        assert not isinstance(other, Deorbitalized) and not hasattr(other, "_numint")
        assert other.kernel() == pytest.approx(exact, abs=SCF)
    assert isinstance(fitted.to_hf(), _DFHF)


def test_the_log_names_the_model(converged: Any) -> None:
    mf = converged.copy().set(verbose=4, stdout=io.StringIO())
    mf.dump_flags()
    assert "model random in place of MS2" in mf.stdout.getvalue()


# --- roads that are closed


def foreign(mf: Any) -> Any:
    mf = mf.copy()
    mf._numint = numint.NumInt()
    return mf


CLOSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "to_gks": (lambda mf: mf.to_gks(), r"use to_uks\(\).*dft\.GKS\(mol, xc=mf\.xc\)"),
    "to_ghf": (lambda mf: mf.to_ghf(), r"use to_uks\(\)"),
    "convert_to_ghf": (scf.addons.convert_to_ghf, r"use to_uks\(\)"),
    "another integrator": (foreign, "would compute the parent"),
    "multigrid": (lambda mf: mf.multigrid_numint(), r"call multigrid_numint\(\) first"),
    "define_xc_": (lambda mf: mf.define_xc_("PBE"), r"call taufree\.deorbitalize\(\)"),
    "to_gpu": (lambda mf: mf.to_gpu(), "network itself runs on one"),
    "Hessian": (lambda mf: mf.Hessian(), "finite differences of analytic gradients"),
}


@pytest.mark.parametrize("kind", ["converged", "fitted"])
@pytest.mark.parametrize("road", CLOSED)
def test_what_would_lose_the_surrogate_is_refused(
    road: str, kind: str, request: pytest.FixtureRequest
) -> None:
    go, sentence = CLOSED[road]
    with pytest.raises(UnsupportedError, match=sentence) as caught:
        go(request.getfixturevalue(kind))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["to_ks", "to_uks", "to_rks"])
def test_another_functional_does_not_run(converged: Any, kind: str) -> None:
    with pytest.raises(UserError, match="stands for MS2"):
        getattr(converged, kind)("PBE").kernel()


def test_newton_comes_after(smooth: Functional) -> None:
    """A second-order object keeps the object it came from inside, which would be the parent."""
    with pytest.raises(UnsupportedError, match=r"deorbitalize\(\) first, then newton\(\)"):
        taufree.deorbitalize(water().newton(), smooth)


# --- crystals


@pytest.fixture
def periodic(smooth: Functional) -> Any:
    """Helium on a lattice; never run."""
    cell = gto.M(a=[[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0]], atom="He 0 0 0", basis="sto-3g")
    return taufree.deorbitalize(pbcdft.KRKS(cell, cell.make_kpts([2, 1, 1])), smooth)


def test_the_layer_serves_crystals(periodic: Any) -> None:
    assert isinstance(periodic, pbcdft.krks.KRKS)
    for other in (periodic.to_uks(), periodic.density_fit(), periodic.to_ks(), periodic.copy()):
        assert_deorbitalized(other)
    assert isinstance(periodic.to_uks(), pbcdft.kuks.KUKS)


@pytest.mark.parametrize("road", ["to_gks", "multigrid_numint", "to_gpu", "Hessian"])
def test_crystals_cannot_lose_the_surrogate_either(periodic: Any, road: str) -> None:
    with pytest.raises(UnsupportedError):
        getattr(periodic, road)()
