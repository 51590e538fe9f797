"""Multigrid integrators: the energy of the plain ones, and its derivative."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pyscf.pbc import dft, gto

import taufree
from networks import random_functional
from taufree.errors import UnsupportedError
from taufree.functional import Functional

# coarse uniform grids are exact enough for laws that hold on any grid
pytestmark = pytest.mark.filterwarnings("ignore::taufree.errors.DomainWarning")
CUT = 1e-5
"""Multigrid integration takes orbitals for zero where they are small (PySCF's default), hartree."""
MULTIGRID = 1e-4
"""Relative: the same, in derivatives."""


@pytest.fixture(scope="module")
def rough() -> Functional:
    return random_functional()


def hydrogen(**options: Any) -> gto.Cell:
    a = np.array([[3.8, 0.4, 0.0], [0.0, 3.6, 0.3], [0.5, 0.0, 4.2]])
    given = {"a": a, "atom": "H 0.1 0 0; H 0.3 0.1 1.4", "basis": "gth-dzv", "pseudo": "gth-pade"}
    return gto.M(**{**given, "mesh": [20, 20, 22], "unit": "B", "verbose": 0, **options})


KINDS = {
    "KRKS": lambda cell: dft.KRKS(cell, cell.make_kpts([2, 1, 1])),
    "KUKS": lambda cell: dft.KUKS(cell, cell.make_kpts([2, 1, 1])),
    "RKS": dft.RKS,
    "UKS": dft.UKS,
}


@pytest.mark.parametrize("kind", KINDS)
def test_multigrid_differs_as_little_as_for_pbe(kind: str) -> None:
    cell, smooth = hydrogen(), random_functional(roughness=1.0)
    plain = taufree.deorbitalize(KINDS[kind](cell), smooth)
    plain.grids = dft.UniformGrids(cell)
    multigrid = taufree.deorbitalize(KINDS[kind](cell).multigrid_numint(), smooth)
    pbe = KINDS[kind](cell)
    pbe.xc = "PBE"
    dm = plain.get_init_guess(key="1e")
    found = {}
    for name, mf in (
        ("plain", plain), ("multigrid", multigrid), ("PBE", pbe), ("PBE m.", pbe.multigrid_numint())
    ):  # fmt: skip
        v = mf.get_veff(dm=dm)
        found[name] = float(v.exc), np.asarray(mf.get_hcore() + v)
    for i in range(2):
        ours = np.abs(found["multigrid"][i] - found["plain"][i]).max()
        theirs = np.abs(found["PBE m."][i] - found["PBE"][i]).max()
        assert ours <= theirs + CUT


@pytest.mark.parametrize("kind", KINDS)
def test_fock_matrix_is_the_derivative_of_the_total_energy(rough: Functional, kind: str) -> None:
    cell = hydrogen()
    mf = taufree.deorbitalize(KINDS[kind](cell).multigrid_numint(), rough)
    dm = np.asarray(mf.get_init_guess(key="1e"))
    d = np.random.default_rng(0).normal(size=dm.shape) / 50
    d = d + d.swapaxes(-1, -2)
    energies = [mf.energy_elec(dm + h * d)[0] for h in (1e-3, -1e-3, 2e-3, -2e-3)]
    numeric = (8 * (energies[0] - energies[1]) - (energies[2] - energies[3])) / 12e-3
    fock = np.asarray(mf.get_hcore() + mf.get_veff(dm=dm))
    n_k = len(mf.kpts) if kind.startswith("K") else 1
    analytic = (fock * d.swapaxes(-1, -2)).sum().real / n_k
    assert analytic == pytest.approx(numeric, rel=MULTIGRID)


def test_a_changed_mesh_is_noticed(rough: Functional) -> None:
    cell = hydrogen()
    mf = taufree.deorbitalize(dft.KRKS(cell).multigrid_numint(), rough)
    dm = mf.get_init_guess(key="1e")
    mf.get_veff(dm=dm)
    mf._numint.reset()
    mf._numint.mesh = [22, 22, 24]
    fresh = taufree.deorbitalize(dft.KRKS(cell).multigrid_numint([22, 22, 24]), rough)
    assert mf.get_veff(dm=dm).exc == fresh.get_veff(dm=dm).exc


def test_second_derivatives_are_refused(rough: Functional) -> None:
    cell = hydrogen()
    mf = taufree.deorbitalize(dft.KRKS(cell).multigrid_numint(), rough)
    with pytest.raises(UnsupportedError, match=r"KRKS\(cell, kpts, xc='MS2'\)"):
        mf._numint.eval_xc_eff("MS2", np.ones((4, np.prod(cell.mesh))), deriv=2)


def test_wires_are_refused(rough: Functional) -> None:
    cell = hydrogen(a=np.diag([3.8, 9, 9]), dimension=1, low_dim_ft_type="inf_vacuum")
    with pytest.raises(UnsupportedError, match="grids"):
        taufree.deorbitalize(dft.KRKS(cell).multigrid_numint(), rough)
