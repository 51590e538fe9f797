"""One density, two parents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from taufree.data.build import select
from taufree.data.generate import calculate
from taufree.data.reparent import with_parent
from taufree.data.store import load_record, write_record
from taufree.data.systems import System
from taufree.errors import UserError
from taufree.physics.descriptors import contracted_gradient
from taufree.physics.parents import PARENTS, energy_density
from tolerances import LIBXC


def test_the_exchange_is_the_new_parents_at_the_old_density(
    small: Callable[..., System], tmp_path: Path
) -> None:
    """An open shell, so that the spin scaling counts; back again, it is the same to the bit."""
    write_record(tmp_path, calculate(small("Li", "sto-3g"), (0,)), "")
    (record,) = load_record(tmp_path / "g2_Li.h5", density_kinds=["converged"])
    other = with_parent(record, "R2SCAN")
    rho, sigma = 2 * record.density.rho, contracted_gradient(2 * record.density.grad_rho)
    held = rho > 1e-6
    ours = energy_density(PARENTS["r2scan"], rho, sigma, 2 * record.tau)
    torch.testing.assert_close(other.exc[held], ours[held], rtol=LIBXC, atol=0)
    assert other.parent == "R2SCAN" and other.e_tot != other.e_tot
    again = with_parent(other, "MS2")
    for key in ("exc", "vrho", "vsigma", "vtau"):
        assert torch.equal(getattr(again, key), getattr(record, key))
    assert with_parent(record, "MS2") is record


def test_systems_of_another_parent_are_chosen_by_its_name() -> None:
    (system,) = select(names=["H2"], parent="r2scan")
    assert system.parent == "R2SCAN"
    with pytest.raises(UserError, match="no parent functional 'PBE': choose from MS2, R2SCAN"):
        select(parent="PBE")
