from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.collections import g2

from taufree.data.fhi_aims import COLUMNS, read_fhi_aims
from taufree.data.generate import Array, calculate
from taufree.data.systems import System
from taufree.errors import UserError

LEVEL = 0
PRINTED = 1e-8  # relative precision of the numbers in the file


@pytest.fixture(scope="module")
def lih(small: Callable[..., System]) -> dict[str, Array]:
    return calculate(small("LiH"), (LEVEL,)).densities["converged", LEVEL]


def write(path: Path, arrays: dict[str, Array], channel: int = 0, tau_factor: float = 2.0) -> Path:
    """As FHI-aims does: columns in an order of its own, τ without ½, one point of weight 0."""
    columns = {
        "weight": arrays["weights"],
        **dict(zip(COLUMNS[-3:], arrays["coords"].T, strict=True)),
        "tau": tau_factor * arrays["tau"][channel],
        "vxc": np.zeros_like(arrays["weights"]),  # not asked for
        **dict(zip(COLUMNS[1:4], arrays["grad_rho"][channel].T, strict=True)),
        "rho": arrays["rho"][channel],
    }
    table = np.stack(list(columns.values()), axis=1)
    extra = np.ones((1, table.shape[1]))
    extra[0, 0] = 0.0
    header = "density on the grid\n" + "  ".join(columns)
    np.savetxt(path, np.vstack([extra, table]), header=header, fmt="%.12e")
    return path


def test_import_gives_back_the_density_and_its_exchange(
    tmp_path: Path, lih: dict[str, Array]
) -> None:
    reference = read_fhi_aims([write(tmp_path / "lih.dat", lih)], g2["LiH"])
    density = reference.density
    np.testing.assert_allclose(density.rho, lih["rho"], rtol=PRINTED)
    np.testing.assert_allclose(density.grad_rho, lih["grad_rho"], rtol=PRINTED, atol=1e-12)
    np.testing.assert_allclose(reference.tau, lih["tau"], rtol=PRINTED)
    assert reference.lapl is None
    assert reference.n_electrons == 4
    # tails, where e_x depends on small differences of printed numbers, are left to the integral
    np.testing.assert_allclose(float(reference.e_x), lih["exc"][0] @ lih["weights"], rtol=PRINTED)


def test_spin_channels_come_from_two_files(tmp_path: Path, small: Callable[..., System]) -> None:
    arrays = calculate(small("NH2"), (LEVEL,)).densities["converged", LEVEL]
    paths = [write(tmp_path / f"spin_{i + 1}.dat", arrays, channel=i) for i in range(2)]
    reference = read_fhi_aims(paths, g2["NH2"])
    assert (reference.density.n_spin, reference.spin) == (2, 1)
    e_x = np.sum(arrays["exc"] @ arrays["weights"]) / 2
    assert float(reference.e_x) == pytest.approx(e_x, rel=PRINTED)
    with pytest.raises(UserError, match="electrons"):
        read_fhi_aims(paths[:1], g2["NH2"])


def test_wrong_factor_of_tau_is_caught(tmp_path: Path, lih: dict[str, Array]) -> None:
    with pytest.raises(UserError, match="wrong factor"):
        read_fhi_aims([write(tmp_path / "halved.dat", lih, tau_factor=1.0)], g2["LiH"])


def test_wrong_charge_is_caught(tmp_path: Path, lih: dict[str, Array]) -> None:
    with pytest.raises(UserError, match="electrons"):
        read_fhi_aims([write(tmp_path / "lih.dat", lih)], g2["LiH"], charge=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# rho tau\n1.0 2.0\n", "names the columns rho_gradient_x"),
        ("1.0 2.0\n", "names the columns rho"),
        ("# " + " ".join(COLUMNS) + "\n1.0 2.0\n", "2 are there"),
        ("# " + " ".join(COLUMNS) + "\n" + "nan " * len(COLUMNS) + "\n", "not finite"),
        ("# " + " ".join(COLUMNS) + "\n1.0 ?\n", "table of numbers"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.dat"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_fhi_aims([path], Atoms("H2", [[0, 0, 0], [0, 0, 0.74]]))


def test_missing_file_and_different_grids(tmp_path: Path, lih: dict[str, Array]) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_fhi_aims([tmp_path / "none.dat"], g2["LiH"])
    one = write(tmp_path / "one.dat", lih)
    other = write(tmp_path / "two.dat", {**lih, "weights": 2 * lih["weights"]})
    with pytest.raises(UserError, match="grid"):
        read_fhi_aims([one, other], g2["LiH"])
