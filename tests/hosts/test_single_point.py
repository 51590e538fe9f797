"""What `taufree run` does, with PBE standing in for the network: the host has tests of its own."""

from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.io import write
from ase.units import Bohr
from pyscf import dft, gto
from pyscf.pbc import dft as pbc_dft
from pyscf.pbc import gto as pbc_gto
from pyscf.pbc.df import RSGDF

import taufree
from taufree.errors import UserError
from taufree.hosts.single_point import Settings, mean_field, single_point, table, unconverged
from taufree.hosts.structures import DIFFUSE, molecule, read_structure
from taufree.physics.parents import PARENTS

SCF_CONVERGENCE = 1e-8  # hartree; PySCF's conv_tol is 1e-9
SMALL = Settings(basis="sto-3g", grid_level=0)
KEYS = {"energy_hartree", "converged", "cycles", "model", "potential", "n_atoms", "wall_s"}


@pytest.fixture
def pbe_stands_in(monkeypatch):
    def deorbitalize(mf, model, potential):
        mf.xc = "PBE"
        return mf

    functional = SimpleNamespace(parent=PARENTS["ms2"])
    monkeypatch.setattr(taufree, "deorbitalize", deorbitalize, raising=False)
    monkeypatch.setattr(taufree, "load_model", lambda name: functional, raising=False)


@pytest.fixture
def hydrogen(tmp_path):
    path = tmp_path / "h2.xyz"
    write(path, Atoms("H2", [(0, 0, 0), (0, 0, 0.74)]))
    return path


@pytest.mark.usefixtures("pbe_stands_in")
@pytest.mark.parametrize("density_fit", [True, False])
def test_both_functionals_are_what_pyscf_gives(hydrogen, density_fit):
    settings = Settings(basis="sto-3g", grid_level=0, density_fit=density_fit)
    result = single_point(hydrogen, settings, parent=True)
    mol = gto.M(atom="H 0 0 0; H 0 0 0.74", basis="sto-3g", verbose=0)
    for xc, run in (("PBE", result), ("MS2", result["parent"])):
        mf = dft.RKS(mol, xc=xc)
        mf = mf.density_fit() if density_fit else mf
        mf.grids.level = 0
        assert run["energy_hartree"] == pytest.approx(mf.kernel(), abs=SCF_CONVERGENCE)
        assert run["cycles"] == mf.cycles
    assert set(result) == KEYS | {"parent"}
    assert set(result["parent"]) == KEYS
    assert result["model"] == "ms2" and result["parent"]["model"] == "MS2"
    assert result["n_atoms"] == 2 and result["converged"] and result["wall_s"] > 0


@pytest.mark.usefixtures("pbe_stands_in")
def test_progress_is_reported_for_each_cycle_of_each_functional(hydrogen):
    seen = []
    result = single_point(hydrogen, SMALL, parent=True, on_cycle=lambda *c: seen.append(c))
    for name, run in (("deorbitalized", result), ("parent", result["parent"])):
        cycles = [c for c in seen if c[0] == name]
        assert [n for _, n, _ in cycles] == list(range(1, len(cycles) + 1))
        assert cycles[-1][2] == pytest.approx(run["energy_hartree"], abs=1e-6)


def test_unpaired_electrons_make_it_unrestricted(tmp_path):
    oxygen = Atoms("O2", [(0, 0, 0), (0, 0, 1.21)])
    assert isinstance(mean_field(oxygen, SMALL), dft.rks.RKS)
    triplet = mean_field(oxygen, Settings(basis="sto-3g", spin=2, max_memory=500))
    assert isinstance(triplet, dft.uks.UKS)
    assert triplet.mol.nelec == (9, 7)
    assert triplet.mol.max_memory == triplet.max_memory == 500
    assert triplet.grids.level == 3


# --- crystals

ONE_K = {"basis": "gth-szv", "kpts": (1, 1, 1)}


@pytest.mark.usefixtures("pbe_stands_in")
def test_crystal_is_what_pyscf_gives(tmp_path, monkeypatch):
    path = tmp_path / "h2.extxyz"
    write(path, Atoms("H2", [(0, 0, 0), (0, 0, 0.74)], cell=[2.0, 2.0, 2.5], pbc=True))

    mesh = [15, 15, 19]

    def coarser(cell, kpts, plain=pbc_dft.KRKS):
        cell.mesh = mesh
        return plain(cell, kpts)

    monkeypatch.setattr(pbc_dft, "KRKS", coarser)
    settings = Settings(basis="gth-szv", kpts=(2, 1, 1))
    result = single_point(path, settings, parent=True)
    cell = pbc_gto.M(
        atom="H 0 0 0; H 0 0 0.74", a=np.diag([2, 2, 2.5]), basis="gth-szv", pseudo="gth-pbe",
        mesh=mesh, verbose=0,
    )  # fmt: skip
    for xc, run in (("PBE", result), ("MS2", result["parent"])):
        mf = pbc_dft.KRKS(cell, cell.make_kpts([2, 1, 1]))
        mf.grids = pbc_dft.BeckeGrids(cell)
        mf.grids.level = 1
        mf.xc = xc
        assert run["energy_hartree"] == pytest.approx(mf.kernel(), abs=SCF_CONVERGENCE)
    assert set(result) == KEYS | {"parent"} and set(result["parent"]) == KEYS


def test_crystals_settings():
    """Pseudopotentials on uniform grids, or all electrons, fitted, on Becke grids."""
    silicon = mean_field(bulk("Si"), Settings(kpts=(2, 2, 1)))
    assert isinstance(silicon, pbc_dft.krks.KRKS) and len(silicon.kpts) == 4
    assert tuple(silicon.cell.mesh) == (27, 27, 27)  # 63 Ha; PySCF's default is 41³
    assert silicon.cell.nelectron == 8 and silicon.cell.basis == "gth-dzvp-molopt-sr"
    assert isinstance(silicon.grids, pbc_dft.gen_grid.BeckeGrids) and silicon.grids.level == 1
    np.testing.assert_allclose(silicon.cell.lattice_vectors() * Bohr, bulk("Si").cell)
    neon = mean_field(bulk("Ne", "fcc", 4.4), Settings(basis="6-31g", kpts=(1, 1, 1), grid_level=1))
    assert neon.cell.nelectron == 10 and neon.grids.level == 1
    assert isinstance(neon.grids, pbc_dft.gen_grid.BeckeGrids)
    assert isinstance(neon.with_df, RSGDF)
    # doi:10.1063/1.1677527: the outermost s and p of Li in 6-31G has 0.036, that of LiH's H 0.161
    lithium = mean_field(bulk("LiH", "rocksalt", 4.08), Settings(basis="6-31g", kpts=(1, 1, 1)))
    assert min(lithium.cell.bas_exp(i).min() for i in range(lithium.cell.nbas)) >= DIFFUSE


def test_electrons_of_all_k_points_are_counted():
    """PySCF counts them for the whole mesh, we for one cell."""
    iron = mean_field(bulk("Fe"), Settings(kpts=(2, 2, 2), spin=2))
    assert isinstance(iron, pbc_dft.kuks.KUKS)
    assert iron.nelec == (8 * 9, 8 * 7)  # 16 electrons beside the core of gth-pbe
    with pytest.raises(UserError, match=r"3 electrons .* --spin must be an odd number"):
        mean_field(bulk("Al"), Settings(**{**ONE_K, "kpts": (2, 2, 2)}))
    with pytest.raises(UserError, match=r"3 electrons at 27 k-points .* even number"):
        mean_field(bulk("Al"), Settings(basis="gth-szv", kpts=(3, 3, 3), smearing_ev=0.1))
    aluminium = mean_field(bulk("Al"), Settings(basis="gth-szv", kpts=(2, 2, 2), smearing_ev=0.1))
    assert aluminium.sigma == pytest.approx(0.1 / 27.2114, rel=1e-5)  # CODATA hartree in eV


@pytest.mark.parametrize(
    ("atoms", "settings", "message"),
    [
        (bulk("Si"), {}, "--kpts 4 4 4"),
        (bulk("Si", cubic=True), {}, "--kpts 3 3 3"),
        (bulk("Si"), {**ONE_K, "charge": 1}, "charged crystals"),
        (bulk("Si"), {**ONE_K, "basis": "def2-svp", "density_fit": False}, "--no-density-fit"),
        (bulk("MgO", "rocksalt", 4.2), {"kpts": (1, 1, 1)}, "uniform grid of .* --basis def2-svp"),
        (bulk("Si"), {**ONE_K, "basis": "nonsense"}, "no basis 'nonsense' for Si"),
        (bulk("Si"), {**ONE_K, "basis": "gth-nonsense"}, "no basis 'gth-nonsense' with"),
        (bulk("Si"), {**ONE_K, "spin": 1}, "8 electrons .* --spin must be even"),
        (fcc111("Al", (1, 1, 2), vacuum=5), ONE_K, "periodic along 2 of 3"),
        (Atoms("H2", [(0, 0, 0), (0, 0, 0.74)]), ONE_K, "for crystals"),
        (Atoms("H2", [(0, 0, 0), (0, 0, 0.74)]), {"smearing_ev": 0.1}, "for crystals"),
        (Atoms("H2", [(0, 0, 0), (0, 0, 0.74)]), {"basis": "gth-szv"}, "for crystals"),
    ],
)
def test_impossible_crystals_are_refused(atoms, settings, message):
    with pytest.raises(UserError, match=message):
        mean_field(atoms, Settings(**settings))


# --- structures


def test_last_frame_of_several(tmp_path):
    frames = [Atoms("H2", [(0, 0, 0), (0, 0, d)]) for d in (0.7, 0.8, 0.9)]
    write(tmp_path / "path.xyz", frames)
    assert read_structure(tmp_path / "path.xyz").positions[1, 2] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("not a structure\n", "cannot be read"),
        ("2\ncut off\nH 0 0 0\n", "cannot be read"),
        ("1\n\nXx 0 0 0\n", "cannot be read"),
        ("1\n\nX 0 0 0\n", "dummy"),
        ("0\n\n", "no atoms"),
        ("1\n\nH 0 0 nan\n", "not a finite number"),
        ("3\n\nO 0 0 0\nH 0 0 1\nH 0 0 1\n", "atoms 2 and 3 are 0.00 Å apart"),
    ],
)
def test_bad_structures_are_refused(tmp_path, text, message):
    path = tmp_path / "bad.xyz"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_structure(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        read_structure(tmp_path / "none.xyz")


@pytest.mark.parametrize(
    ("symbol", "options", "message"),
    [
        ("N", {"basis": "def2-svp"}, "7 electrons .* odd"),
        ("O", {"basis": "def2-svp", "spin": 1}, "even"),
        ("O", {"basis": "def2-svp", "spin": -2}, "N↑ − N↓"),
        ("O", {"basis": "def2-svp", "spin": 10}, "between 0 and 8"),
        ("O", {"basis": "def2-svp", "charge": 8}, "no electrons"),
        ("O", {"basis": "nonsense"}, "no basis 'nonsense' for O"),
        ("U", {"basis": "def2-svp"}, "no basis 'def2-svp' for U"),
        ("He", {"basis": "sto-3g", "charge": -1, "spin": 3}, "larger --basis"),
    ],
)
def test_impossible_molecules_are_refused(symbol, options, message):
    with pytest.raises(UserError, match=message):
        molecule(Atoms(symbol), **options)


def test_heavy_elements_get_the_core_potential_of_their_basis():
    # def2-ECP of iodine: 28 core electrons (F. Weigend, R. Ahlrichs, doi:10.1039/b508541a)
    mol = molecule(Atoms("HI", [(0, 0, 0), (0, 0, 1.61)]), "def2-svp")
    np.testing.assert_array_equal(mol.atom_charges(), [1, 53 - 28])
    assert molecule(Atoms("O"), "6-31g", spin=2).nelectron == 8


def run_of(energy, converged=True):
    return {
        "energy_hartree": energy,
        "converged": converged,
        "cycles": 50,
        "model": "ms2",
        "potential": "ks",
        "n_atoms": 2,
        "wall_s": 2.0,
    }


def test_table_states_the_difference_per_atom():
    shown = table({**run_of(-1.0), "parent": {**run_of(-1.002), "wall_s": 5.0}})
    # 2 mHa over 2 atoms; 1 hartree = 627.509 kcal/mol
    assert "difference +2.00 mHa, +0.628 kcal/mol per atom" in shown.caption
    assert "0.40 of the parent's wall time" in shown.caption
    assert shown.row_count == 2
    assert table(run_of(-1.0)).caption is None


def test_unconverged_runs_are_named():
    assert unconverged(run_of(-1.0)) is None
    assert "deorbitalized SCF did not converge in 50 cycles" in unconverged(run_of(-1.0, False))
    both = unconverged({**run_of(-1.0), "parent": run_of(-1.0, False)})
    assert "parent SCF" in both and "deorbitalized" not in both
