"""What moving points, nuclei and the cell does to E_x, against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from networks import random_functional
from taufree.functional import Functional
from taufree.model.tokens import TokenMap
from taufree.motion import Motion, motion
from tolerances import FINITE_DIFFERENCE, SUM_ROUNDING

CENTERS = torch.tensor([[0.0, 0, 0], [1.5, 0.2, -0.3], [-0.4, 2.1, 1.0]]).double()
LATTICE = torch.tensor([[5.0, 0.3, 0], [0, 6, 0.2], [0.1, 0, 5.5]]).double()
LATTICES = {"molecule": None, "crystal": LATTICE}
STEP = 1e-5  # bohr; the sharpest feature, exp(−205 r²), is 0.05 bohr wide


class Case:
    """Random values at random points near three nuclei."""

    def __init__(self, functional: Functional, lattice: Tensor | None) -> None:
        generator = torch.Generator().manual_seed(1)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.functional, self.lattice = functional, lattice
        self.points, self.grad_rho = 1.5 * random(300, 3), 0.4 * random(300, 3)
        self.rho, self.weights = 0.02 + random(300).abs() / 4, random(300).abs() / 20
        self.random = random

    def energy(self, **changed: Any) -> float:
        at = {**vars(self), "centers": CENTERS, **changed}
        geometry = self.functional.geometry(at["points"], at["centers"], at["lattice"])
        e = self.functional.energy_density(self.rho, self.grad_rho, at["weights"], geometry)
        return (at["weights"] @ e).item()

    def motion(self) -> tuple[Motion, Tensor]:
        geometry = self.functional.geometry(self.points, CENTERS, self.lattice)
        part = self.functional.potential(self.rho, self.grad_rho, self.weights, geometry)
        return motion(part, geometry, CENTERS, self.lattice), part.vweight


@pytest.fixture(scope="module", params=LATTICES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(random_functional(), LATTICES[request.param])


def derivative(e: Callable[[float], float], h: float = STEP) -> float:
    return (8 * (e(h) - e(-h)) - (e(2 * h) - e(-2 * h))) / (12 * h)


def test_compiled_form_is_the_plain_one(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, _ = case.motion()
    monkeypatch.setattr(TokenMap, "compiled", False)
    plain, _ = case.motion()
    for a, b in zip(vars(compiled).values(), vars(plain).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=SUM_ROUNDING)


def test_points_and_nuclei(case: Case) -> None:
    moved, _ = case.motion()
    for name, start, gradient in (
        ("points", case.points, moved.points),
        ("centers", CENTERS, moved.centers),
    ):
        way = case.random(*start.shape)
        numeric = derivative(lambda t: case.energy(**{name: start + t * way}))  # noqa: B023
        assert abs(numeric) > 1e-5
        assert (gradient * way).sum().item() == pytest.approx(numeric, rel=1e-5)  # rounding / STEP


def test_strain(case: Case) -> None:
    strain = case.random(3, 3)

    def energy(t: float) -> float:
        cell = torch.eye(3).double() + t * strain
        lattice = None if case.lattice is None else case.lattice @ cell.T
        return case.energy(points=case.points @ cell.T, centers=CENTERS @ cell.T, lattice=lattice)

    numeric = derivative(energy)
    assert abs(numeric) > 1e-4
    assert (case.motion()[0].strain * strain).sum().item() == pytest.approx(numeric, rel=1e-5)


def test_weights(case: Case) -> None:
    _, vweight = case.motion()
    way = case.weights * case.random(len(case.weights))
    numeric = derivative(lambda t: case.energy(weights=case.weights + t * way), 1e-3)
    assert (vweight @ way).item() == pytest.approx(numeric, rel=FINITE_DIFFERENCE)


def test_moving_everything_changes_nothing(case: Case) -> None:
    moved, _ = case.motion()
    assert moved.centers.abs().max() > 1e-3
    total = moved.points.sum(0) + moved.centers.sum(0)
    torch.testing.assert_close(total, torch.zeros(3).double(), rtol=0, atol=SUM_ROUNDING)


def test_turning_everything_and_the_gradients_changes_nothing() -> None:
    """A rotation is an antisymmetric strain; ∇ρ turns along."""
    case = Case(random_functional(), LATTICE)
    moved, _ = case.motion()
    geometry = case.functional.geometry(case.points, CENTERS, LATTICE)
    part = case.functional.potential(case.rho, case.grad_rho, case.weights, geometry)
    torque = moved.strain + part.vgrad.T @ case.grad_rho
    torch.testing.assert_close(torque, torque.T, rtol=0, atol=SUM_ROUNDING)
