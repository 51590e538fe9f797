"""The plane that is drawn, and what is drawn on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write
from ase.units import Bohr
from pyscf import dft

from networks import random_functional
from reference import hydroxyl_radical, orbital_density
from taufree.console import refuse_picture
from taufree.errors import DomainWarning, UserError
from taufree.evaluation import expert_map
from taufree.files import save_figure
from taufree.hosts.single_point import Settings
from tolerances import SUM_ROUNDING


@pytest.mark.parametrize("name", ["H2O", "CO2", "H"])
def test_the_plane_holds_the_atoms_of_small_molecules(name: str) -> None:
    positions = (Atoms(name) if name == "H" else molecule(name)).positions / Bohr
    plane = expert_map.principal_plane(positions, 11)
    inside, height = plane.project(positions)
    assert np.abs(height).max() < 1e-9
    assert abs(plane.u @ plane.v) < 1e-12
    for axis, points in enumerate((plane.x, plane.y)):
        assert points[0] == pytest.approx(inside[:, axis].min() - expert_map.MARGIN)
    assert plane.coords.shape == (121, 3)


def test_a_crystals_plane_holds_a_bond() -> None:
    silicon = bulk("Si")
    lattice = np.array(silicon.cell) / Bohr
    plane, images = expert_map.bond_plane(silicon.positions / Bohr, lattice, 9)
    inside, height = plane.project(images)
    bond = 5.43 * np.sqrt(3) / 4 / Bohr
    on = np.abs(height) < 1e-9
    assert on.sum() > 3
    assert np.isclose(np.linalg.norm(inside[on], axis=1), bond, atol=0.01).any()


def test_fields_are_those_of_the_orbitals() -> None:
    mf = dft.UKS(hydroxyl_radical("sto-3g"), xc="LDA").run(verbose=0)
    known = orbital_density(mf)
    found = expert_map.fields_at(mf, known.density.coords.numpy())
    torch.testing.assert_close(found[:, 0], known.density.rho, rtol=SUM_ROUNDING, atol=1e-14)
    torch.testing.assert_close(found[:, 4], known.tau, rtol=SUM_ROUNDING, atol=1e-14)


def test_a_picture_of_hydrogen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_map, "load_model", lambda name: random_functional())
    path = tmp_path / "h2.xyz"
    write(path, molecule("H2"))
    settings = Settings(basis="sto-3g", grid_level=0)
    result, figure = expert_map.evaluate(path, settings, n_points=12)
    assert sum(result["electron_share"]) == pytest.approx(1, abs=1e-6)
    assert set(result["mean_absolute_difference"]) == set(expert_map.QUANTITIES)
    picture = tmp_path / "h2.png"
    save_figure(figure, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_crystals_map_is_periodic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the file to the picture, and on a plane that reaches a lattice vector further."""
    functional = random_functional()
    functional.elements = frozenset({"Si"})  # with all electrons
    monkeypatch.setattr(expert_map, "load_model", lambda name: functional)
    seen = []
    look = expert_map.look
    monkeypatch.setattr(expert_map, "look", lambda *given: seen.append(given) or look(*given))
    path = tmp_path / "silicon.cif"
    write(path, bulk("Si"))
    settings = Settings(basis="gth-szv", grid_level=0, kpts=(1, 1, 1), smearing_ev=0.1)
    with pytest.warns(DomainWarning, match="pseudopotentials"):
        result, _ = expert_map.evaluate(path, settings, n_points=8)
    assert sum(result["electron_share"]) == pytest.approx(1, abs=1e-6)

    _, mf, plane = seen[0]
    vector = mf.mol.lattice_vectors()[0]
    u = vector / np.linalg.norm(vector)
    v = plane.v - (plane.v @ u) * u
    x = np.linspace(0.3, 3.0, 5)
    both = np.append(x, x + np.linalg.norm(vector))
    maps = look(functional.double(), mf, expert_map.Plane(plane.origin, u, v, both, x))
    np.testing.assert_allclose(maps.gates.sum(1), 1, atol=SUM_ROUNDING)
    gates = maps.gates.reshape(5, 2, 5, -1)
    assert np.ptp(gates, axis=(0, 2)).max() > 1e-3  # something to see
    np.testing.assert_allclose(gates[:, 0], gates[:, 1], atol=1e-6)
    fields = np.stack([maps.parent, maps.model]).reshape(8, 5, 2, 5)
    np.testing.assert_allclose(fields[:, :, 0], fields[:, :, 1], rtol=1e-5, atol=1e-8)


def test_a_picture_that_cannot_be_written_is_refused_before_the_calculation() -> None:
    with pytest.raises(UserError, match=r"--out picture\.gif: give a name that ends in \.png"):
        refuse_picture(Path("picture.gif"), "--out")
