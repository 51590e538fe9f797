"""The second derivative of E_x: against autograd of the reference form and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from networks import random_functional
from reference import OrbitalDensity
from taufree.functional import RHO_THRESHOLD, Functional, Geometry
from taufree.model import tokens
from taufree.response import Response
from tolerances import FINITE_DIFFERENCE, SUM_ROUNDING


class Scene:
    """One channel of a molecule's density, every 40th point, with changes of it."""

    def __init__(self, density: OrbitalDensity, functional: Functional, seed: int = 0) -> None:
        d = density.density
        n, keep = d.n_spin, slice(None, None, 40)
        self.functional = functional
        self.rho, self.grad_rho = n * d.rho[0, keep], n * d.grad_rho[0, keep]
        self.weights = 40 * d.weights[keep]
        self.geometry: Geometry = functional.geometry(d.coords[keep], d.centers)
        generator = torch.Generator().manual_seed(seed)
        self.d_rho, self.d_grad = self.random(generator), self.random(generator, 3)

    def random(self, generator: torch.Generator, *shape: int) -> Tensor:
        """Two changes, of the size of the density."""
        x = torch.randn(2, len(self.rho), *shape, dtype=torch.float64, generator=generator)
        return x * (self.rho if not shape else self.rho[:, None]) / 10

    def response(self) -> Response:
        return Response(self.functional, self.rho, self.grad_rho, self.weights, self.geometry)


@pytest.fixture(scope="module")
def rough() -> Functional:
    return random_functional()


@pytest.fixture(scope="module")
def scene(rough: Functional, water: OrbitalDensity) -> Scene:
    return Scene(water, rough)


def assert_close(a: Tensor, b: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


@pytest.mark.parametrize("which", ["water", "hydroxyl"])
def test_against_double_backward_of_the_reference_form(
    rough: Functional, which: str, request: pytest.FixtureRequest
) -> None:
    at = Scene(request.getfixturevalue(which), rough)
    n, g = at.rho.clone().requires_grad_(), at.grad_rho.clone().requires_grad_()
    energy = at.weights @ rough.energy_density(n, g, at.weights, at.geometry)
    first = torch.autograd.grad(energy, (n, g), create_graph=True)
    vrho, vgrad = at.response()(at.d_rho, at.d_grad)
    for k in range(2):
        exact = torch.autograd.grad(first, (n, g), (at.d_rho[k], at.d_grad[k]), retain_graph=True)
        assert_close(vrho[k], exact[0], SUM_ROUNDING)
        assert_close(vgrad[k], exact[1], SUM_ROUNDING)


def test_against_finite_differences_of_the_potential(scene: Scene, rough: Functional) -> None:
    def along(h: float) -> tuple[Tensor, Tensor]:
        rho, grad_rho = scene.rho + h * scene.d_rho[0], scene.grad_rho + h * scene.d_grad[0]
        v = rough.potential(rho, grad_rho, scene.weights, scene.geometry)
        return v.vrho, v.vgrad

    h = 1e-3
    plus, minus, plus2, minus2 = (along(x * h) for x in (1, -1, 2, -2))
    found = scene.response()(scene.d_rho, scene.d_grad)
    for i in range(2):
        numeric = (8 * (plus[i] - minus[i]) - (plus2[i] - minus2[i])) / (12 * h)
        assert_close(found[i][0], numeric, FINITE_DIFFERENCE)


def test_symmetric(scene: Scene) -> None:
    """⟨a|E''|b⟩ = ⟨b|E''|a⟩"""
    vrho, vgrad = scene.response()(scene.d_rho, scene.d_grad)
    matrix = torch.einsum("ap,bp->ab", scene.d_rho, vrho)
    matrix += torch.einsum("apx,bpx->ab", scene.d_grad, vgrad)
    assert matrix[0, 1].item() == pytest.approx(matrix[1, 0].item(), rel=SUM_ROUNDING)
    assert abs(matrix[0, 1].item()) > 1e-6


def test_not_local(scene: Scene) -> None:
    """Density that arrives at one point changes the potential at all points in reach."""
    d_rho = torch.zeros_like(scene.rho[None])
    d_rho[0, scene.rho.argmax()] = 0.1
    vrho, _ = scene.response()(d_rho, torch.zeros_like(scene.grad_rho[None]))
    assert (vrho[0] != 0).sum() > len(scene.rho) / 2


def test_blocks_change_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = scene.response()(scene.d_rho, scene.d_grad)
    monkeypatch.setattr(tokens, "BLOCK", 2)
    small = scene.response()(scene.d_rho, scene.d_grad)
    for a, b in zip(small, usual, strict=True):
        assert_close(a, b, SUM_ROUNDING)


def test_points_without_density_neither_act_nor_feel(scene: Scene, rough: Functional) -> None:
    rho = scene.rho.clone()
    empty = torch.arange(0, len(rho), 7)
    rho[empty] = RHO_THRESHOLD / 2
    response = Response(rough, rho, scene.grad_rho, scene.weights, scene.geometry)
    vrho, vgrad = response(scene.d_rho, scene.d_grad)
    assert not vrho[:, empty].any() and not vgrad[:, empty].any()
    d_rho, d_grad = scene.d_rho.clone(), scene.d_grad.clone()
    d_rho[:, empty], d_grad[:, empty] = torch.nan, torch.inf
    again = response(d_rho, d_grad)
    assert (again[0] == vrho).all() and (again[1] == vgrad).all()


def test_single_precision_networks_respond_in_double(scene: Scene, water: OrbitalDensity) -> None:
    single = random_functional(dtype=torch.float32)
    at = Scene(water, single)
    exact = Scene(water, single.double())
    for a, b in zip(
        at.response()(at.d_rho, at.d_grad), exact.response()(at.d_rho, at.d_grad), strict=True
    ):
        assert_close(a, b, SUM_ROUNDING)
