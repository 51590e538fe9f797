from __future__ import annotations

import numpy as np
import pytest
from pyscf.pbc import dft, gto

from taufree.data.time_reversal import PairedGDF, PairedNumInt, Pairs
from tolerances import SCF, SUM_ROUNDING


def helium(mesh: list[int], spin: bool = False) -> dft.krks.KRKS:
    cell = gto.M(
        atom="He 0.3 0.2 0.1", a=np.diag([4.5, 4.6, 4.7]), unit="Bohr", basis="def2-svp", verbose=0
    )
    mf = (dft.KUKS if spin else dft.KRKS)(cell, cell.make_kpts(mesh), xc="MS2").density_fit()
    mf.grids.level = 0
    return mf


@pytest.mark.parametrize(
    "mesh", [[1, 1, 1], [1, 1, 2], [1, 2, 3]]
)  # the last with complex orbitals
@pytest.mark.parametrize("spin", [False, True])
def test_half_the_mesh_is_the_mesh(mesh: list[int], spin: bool) -> None:
    whole, half = helium(mesh, spin), helium(mesh, spin)
    half.with_df = half.with_df.view(PairedGDF)
    half._numint = PairedNumInt()
    assert half.kernel() == pytest.approx(whole.kernel(), abs=SCF)
    np.testing.assert_allclose(half.get_hcore(), whole.get_hcore(), atol=SUM_ROUNDING)
    np.testing.assert_allclose(
        half.get_veff(dm=whole.make_rdm1()), whole.get_veff(), atol=10 * SUM_ROUNDING
    )


def test_pairs_of_a_mesh() -> None:
    mf = helium([3, 2, 1])
    pairs = Pairs(mf.cell, mf.kpts)
    assert len(pairs.kept) == 4  # of six points, (0, 0) and (0, 1/2) are their own partners
    assert pairs.weight.sum() == pytest.approx(4)
    assert not pairs.real
    assert Pairs(mf.cell, mf.cell.make_kpts([2, 2, 1])).real
    matrices = np.random.default_rng(0).normal(size=(2, 4, 3, 3, 2)) @ [1, 1j]
    full = pairs.unfold(matrices)
    assert full.shape == (2, 6, 3, 3)
    np.testing.assert_allclose(pairs.fold(full).mean(1).real, full.mean(1).real)
