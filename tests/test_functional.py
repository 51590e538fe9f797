"""The functional of a density on a grid: its potential, symmetries, limits and robustness."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck

from networks import random_functional, random_network, random_rotation
from reference import OrbitalDensity, hydrogen_atom
from taufree.functional import RHO_THRESHOLD, Functional, Potential, leaf
from taufree.model import tokens
from taufree.model.config import ModelConfig
from taufree.physics.descriptors import lda_exchange
from taufree.physics.parents.ms2 import KAPPA, MU
from tolerances import (
    FINITE_DIFFERENCE,
    ROUNDING,
    SAME_INTEGRAL,
    SAME_INTEGRAL_SINGLE,
    SUM_ROUNDING,
)

TINY = {
    "n_radial": (3, 2, 1),
    "width": 8,
    "n_layers": 1,
    "n_heads": 2,
    "n_read": 4,
    "n_mix": 2,
    "n_experts": 3,
    "expert_width": 6,
}
"""Sizes for checks that differentiate number by number."""


@dataclass(frozen=True)
class Scene:
    """An unpolarized density on points, with nuclei; of no molecule in particular, or of one."""

    coords: Tensor
    centers: Tensor
    rho: Tensor
    grad_rho: Tensor
    weights: Tensor
    lattice: Tensor | None = None

    def energy(self, functional: Functional, rho: Tensor, grad_rho: Tensor) -> Tensor:
        geometry = functional.geometry(self.coords, self.centers, self.lattice)
        return self.weights @ functional.energy_density(rho, grad_rho, self.weights, geometry)

    def potential(self, functional: Functional) -> Potential:
        geometry = functional.geometry(self.coords, self.centers, self.lattice)
        return functional.potential(self.rho, self.grad_rho, self.weights, geometry)

    def only(self, points: Tensor) -> Scene:
        return Scene(
            self.coords[points],
            self.centers,
            self.rho[points],
            self.grad_rho[points],
            self.weights[points],
            self.lattice,
        )


def random_scene(generator: torch.Generator, n: int, n_centers: int) -> Scene:
    """Densities over six decades, s up to 3, points of no symmetry."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    rho = torch.exp(3 * randn(n) - 2)
    s = 3 * torch.rand(n, dtype=torch.float64, generator=generator)
    size = 2 * s * (3 * torch.pi**2) ** (1 / 3) * rho ** (4 / 3)
    grad_rho = size[:, None] * torch.nn.functional.normalize(randn(n, 3))
    return Scene(3 * randn(n, 3), 2 * randn(n_centers, 3), rho, grad_rho, torch.exp(randn(n) - 3))


def turned(at: Scene, turn: Tensor, shift: float = 0.0) -> Scene:
    """The same density after a rotation (or reflection) and a translation."""
    return replace(
        at,
        coords=at.coords @ turn + shift,
        centers=at.centers @ turn + shift,
        grad_rho=at.grad_rho @ turn,
        lattice=None if at.lattice is None else at.lattice @ turn,
    )


@pytest.fixture
def scene(generator: torch.Generator) -> Scene:
    return random_scene(generator, 1500, 4)


@pytest.fixture
def molecule(water: OrbitalDensity) -> Scene:
    d = water.density
    return Scene(d.coords, d.centers, *d.unpolarized[0], d.weights)


@pytest.fixture(scope="module")
def rough() -> Functional:
    return random_functional()


def assert_close(a: Tensor, b: Tensor, tolerance: float = SUM_ROUNDING) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


def test_the_network_of_these_tests_is_rough(rough: Functional, molecule: Scene) -> None:
    """Otherwise they would prove little; after a change of sizes, another seed may be needed."""
    v = molecule.potential(rough)
    held = molecule.rho > 1e-3
    assert v.alpha[held].max() > 100 * v.alpha[held].min()
    electrons = (molecule.weights * molecule.rho) @ v.gates
    assert (electrons > 0.01 * electrons.sum()).sum() >= 4


# --- the potential is the derivative of the energy


@pytest.mark.parametrize("which", ["scene", "molecule"])
def test_potential_is_the_gradient_of_the_reference_form(
    rough: Functional, which: str, request: pytest.FixtureRequest
) -> None:
    at: Scene = request.getfixturevalue(which)
    rho, grad_rho = leaf(at.rho), leaf(at.grad_rho)
    geometry = rough.geometry(at.coords, at.centers)
    e = rough.energy_density(rho, grad_rho, at.weights, geometry)
    vrho, vgrad = grad(at.weights @ e, (rho, grad_rho))
    fast = at.potential(rough)
    torch.testing.assert_close(fast.exc, e.detach(), rtol=SUM_ROUNDING, atol=1e-14)
    # point by point: ∂E/∂ρ_j is of the size w ρ^{1/3}, the change of e_x with ln|∇ρ| of w ρ^{4/3}
    w, held = at.weights.abs(), at.rho.clamp_min(RHO_THRESHOLD)
    assert ((fast.vrho - vrho).abs() <= SUM_ROUNDING * w * held ** (1 / 3)).all()
    by_size = (fast.vgrad - vgrad).norm(dim=1) * at.grad_rho.norm(dim=1)
    assert (by_size <= SUM_ROUNDING * w * held ** (4 / 3)).all()
    assert_close(fast.vrho * at.rho, vrho * at.rho)
    assert_close(*(v * at.grad_rho for v in (fast.vgrad, vgrad)))


def test_potential_in_a_crystal(rough: Functional, generator: torch.Generator) -> None:
    free = random_scene(generator, 600, 2)
    lattice = torch.tensor([[6.0, 0, 0], [2.0, 7.0, 0], [0, -1.0, 6.5]], dtype=torch.float64)
    at = replace(free, lattice=lattice)
    rho, grad_rho = leaf(at.rho), leaf(at.grad_rho)
    vrho, vgrad = grad(at.energy(rough, rho, grad_rho), (rho, grad_rho))
    fast = at.potential(rough)
    assert_close(fast.vrho * at.rho, vrho * at.rho)
    assert_close(*(v * at.grad_rho for v in (fast.vgrad, vgrad)))
    assert (fast.exc - free.potential(rough).exc).abs().max() > 1e-3  # the images are seen


@pytest.mark.parametrize("which", ["scene", "molecule"])
def test_potential_is_the_finite_difference_of_the_energy(
    rough: Functional, generator: torch.Generator, which: str, request: pytest.FixtureRequest
) -> None:
    """Along random relative changes of ρ and of ∇ρ at all points together."""
    at: Scene = request.getfixturevalue(which)
    v = at.potential(rough)
    size = at.grad_rho.norm(dim=1)
    for along_rho, along_grad in ((1.0, 0.0), (0.0, 1.0), (1.0, 2.0)):
        d = torch.randn(4, len(at.rho), dtype=torch.float64, generator=generator)
        d_rho, d_grad = along_rho * at.rho * d[0], along_grad * (size * d[1:]).T

        def e(step: float) -> Tensor:
            return at.energy(rough, at.rho + step * d_rho, at.grad_rho + step * d_grad)  # noqa: B023

        with torch.no_grad():
            h = 1e-4
            numeric = (8 * (e(h) - e(-h)) - (e(2 * h) - e(-2 * h))) / (12 * h)
        analytic = v.vrho @ d_rho + (v.vgrad * d_grad).sum()
        assert numeric.item() == pytest.approx(analytic.item(), rel=FINITE_DIFFERENCE)


def test_reference_form_gradcheck(generator: torch.Generator) -> None:
    """First and second derivatives, through tokens, encoder and experts."""
    at = random_scene(generator, 5, 2)
    functional = random_functional(roughness=2.0, **TINY)
    inputs = (0.1 + at.rho).requires_grad_(), leaf(at.grad_rho)

    def e(rho: Tensor, grad_rho: Tensor) -> Tensor:
        return at.energy(functional, rho, grad_rho)

    assert gradcheck(e, inputs)
    assert gradgradcheck(e, inputs)


def test_potential_keeps_no_graph(rough: Functional, scene: Scene) -> None:
    v = scene.potential(rough)
    tensors = {**vars(v), **vars(v.seam)}
    del tensors["seam"]
    assert not any(x.requires_grad for x in tensors.values())
    assert all(p.grad is None for p in rough.network.parameters())


# --- symmetries


def test_rotation_and_translation(
    rough: Functional, scene: Scene, generator: torch.Generator
) -> None:
    rotation = random_rotation(generator)
    for turn, shift in ((rotation, 0.0), (-rotation, 0.0), (rotation, 17.3)):
        moved = turned(scene, turn, shift)
        a, b = scene.potential(rough), moved.potential(rough)
        assert_close(b.alpha, a.alpha)
        assert_close(b.gates, a.gates)
        assert_close(b.vrho * scene.rho, a.vrho * scene.rho)
        assert_close(b.vgrad * moved.grad_rho, (a.vgrad @ turn) * moved.grad_rho)


def test_rotation_of_a_crystal(rough: Functional, scene: Scene, generator: torch.Generator) -> None:
    lattice = torch.tensor([[8.0, 0, 0], [2.0, 7.0, 0], [0, -1.0, 6.5]], dtype=torch.float64)
    q = random_rotation(generator)
    at = replace(scene, lattice=lattice)
    assert_close(turned(at, q).potential(rough).alpha, at.potential(rough).alpha)


def test_order_of_points_and_of_nuclei(
    rough: Functional, scene: Scene, generator: torch.Generator
) -> None:
    a = scene.potential(rough)
    order = torch.randperm(len(scene.rho), generator=generator)
    b = scene.only(order).potential(rough)
    assert_close(b.alpha, a.alpha[order])
    assert_close(b.vrho, a.vrho[order])
    nuclei = torch.randperm(len(scene.centers), generator=generator)
    renamed = replace(scene, centers=scene.centers[nuclei])
    assert_close(renamed.potential(rough).alpha, a.alpha)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, SAME_INTEGRAL), (torch.float32, SAME_INTEGRAL_SINGLE)],
    ids=["float64", "float32"],
)
def test_blocks_and_order_do_not_change_the_energy(
    molecule: Scene,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    functional = random_functional(roughness=1.0, dtype=dtype)

    def energy(at: Scene) -> float:
        return (at.weights @ at.potential(functional).exc).item()

    usual = energy(molecule)
    order = torch.randperm(len(molecule.rho), generator=generator)
    assert energy(molecule.only(order)) == pytest.approx(usual, abs=tolerance)
    monkeypatch.setattr(tokens, "BLOCK", 5)
    assert energy(molecule) == pytest.approx(usual, abs=tolerance)


def test_splitting_a_point_changes_nothing(rough: Functional, scene: Scene) -> None:
    """Sums run over wρ, electrons: one point twice with half the weight is the same density."""
    twice = torch.arange(len(scene.rho)).repeat_interleave(2)
    doubled = scene.only(twice)
    halved = replace(doubled, weights=doubled.weights / 2)
    a, b = scene.potential(rough), halved.potential(rough)
    assert_close(b.alpha[::2], a.alpha)
    assert_close(halved.weights @ b.exc, scene.weights @ a.exc)


def test_distant_fragments_are_additive(rough: Functional, generator: torch.Generator) -> None:
    a, b = random_scene(generator, 700, 3), random_scene(generator, 500, 2)
    far = torch.tensor([50.0, 0.0, 0.0], dtype=torch.float64)
    both = Scene(
        torch.cat([a.coords, b.coords + far]),
        torch.cat([a.centers, b.centers + far]),
        torch.cat([a.rho, b.rho]),
        torch.cat([a.grad_rho, b.grad_rho]),
        torch.cat([a.weights, b.weights]),
    )
    alone = [x.potential(rough) for x in (a, b)]
    together = both.potential(rough)
    assert_close(together.alpha, torch.cat([x.alpha for x in alone]))
    assert_close(together.vrho, torch.cat([x.vrho for x in alone]))


# --- limits


def test_uniform_gas_without_tokens_in_reach(rough: Functional, generator: torch.Generator) -> None:
    """α̃ = 1 exactly: the LDA, whatever the weights, and the gradient coefficient of the parent."""
    n = 200
    rho = 3 / (4 * torch.pi * torch.logspace(-0.5, 1, n, dtype=torch.float64) ** 3)
    coords = torch.randn(n, 3, dtype=torch.float64, generator=generator)
    centers = torch.tensor([[60.0, 0, 0], [0, -80.0, 0]], dtype=torch.float64)
    weights = torch.rand(n, dtype=torch.float64, generator=generator)
    flat = Scene(coords, centers, rho, torch.zeros_like(coords), weights)
    v = flat.potential(rough)
    torch.testing.assert_close(v.alpha, torch.ones_like(rho), rtol=ROUNDING, atol=0)
    torch.testing.assert_close(v.exc, lda_exchange(rho), rtol=ROUNDING, atol=0)
    # f′(1) = 0 keeps ∂α̃/∂ρ and ∂α̃/∂σ out of the derivatives
    lda_potential = 4 / 3 * lda_exchange(rho) / rho * weights
    torch.testing.assert_close(v.vrho, lda_potential, rtol=ROUNDING, atol=0)
    assert (v.vgrad == 0).all()
    # ∂e_x/∂∇ρ = 2∇ρ ∂e_x/∂σ, to first order in ∇ρ
    p_by_sigma = 1 / (4 * (3 * torch.pi**2) ** (2 / 3) * rho ** (8 / 3))
    small = 1e-9 * rho[:, None] ** (4 / 3) * torch.ones_like(coords)
    slope = 2 * (weights * lda_exchange(rho) * MU * p_by_sigma)[:, None] * small
    v = replace(flat, grad_rho=small).potential(rough)
    torch.testing.assert_close(v.vgrad, slope, rtol=1e-12, atol=0)


def test_alpha_is_never_negative(rough: Functional, scene: Scene, molecule: Scene) -> None:
    for at in (scene, molecule):
        assert (at.potential(rough).alpha >= 0).all()


def test_points_below_the_threshold_hold_no_energy(molecule: Scene) -> None:
    """What RHO_THRESHOLD drops: at most 1 + κ times the LDA, as a density's tail is."""
    dropped = molecule.rho < RHO_THRESHOLD
    assert dropped.sum() > 10
    bound = (1 + KAPPA) * lda_exchange(molecule.rho[dropped]) @ molecule.weights[dropped]
    assert abs(bound) < 2 * SAME_INTEGRAL


def test_a_point_below_the_threshold_is_as_good_as_absent(
    rough: Functional, molecule: Scene
) -> None:
    held = (molecule.rho > RHO_THRESHOLD).nonzero().squeeze(1)
    a, b = molecule.potential(rough), molecule.only(held).potential(rough)
    assert_close(b.vrho, a.vrho[held])
    dropped = molecule.rho <= RHO_THRESHOLD
    assert all((x[dropped] == 0).all() for x in (a.exc, a.vrho, a.vgrad))


# --- robustness


def assert_finite(v: Potential) -> None:
    for name in ("exc", "vrho", "vgrad", "alpha", "gates"):
        assert getattr(v, name).isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    ("rho", "sigma"),
    [
        (0.0, 0.0),
        (1e-30, 0.0),
        (-1e-18, 1e-20),
        (1.01e-9, 1e30),
        (1.0, 1e200),
        (1e-8, 1e-8),
        (1e8, 1e25),
        (1e8, 0.0),
    ],
)
def test_absurd_densities_are_finite(rho: float, sigma: float, dtype: torch.dtype) -> None:
    functional = random_functional(dtype=dtype)
    coords = torch.tensor([[0.0, 0, 0], [0, 0, 1e-9], [1, 0, 0], [0, 0, 9.0]], dtype=torch.float64)
    full = torch.ones(4, dtype=torch.float64)
    at = Scene(coords, coords[:1], rho * full, sigma**0.5 * coords[[2, 2, 2, 2]], full)
    v = at.potential(functional)
    assert_finite(v)
    if rho <= 0:
        assert (v.exc == 0).all() and (v.vrho == 0).all()


def test_one_point_and_none(rough: Functional, scene: Scene) -> None:
    one = scene.only(torch.tensor([7])).potential(rough)
    assert_finite(one)
    assert one.exc < 0
    none = scene.only(torch.tensor([], dtype=torch.long))
    v = none.potential(rough)
    assert v.exc.shape == v.vrho.shape == (0,)
    assert none.energy(rough, none.rho, none.grad_rho) == 0


def test_two_nuclei_at_one_place_and_a_point_on_a_nucleus(rough: Functional, scene: Scene) -> None:
    centers = scene.centers[[0, 0, 1]]
    coords = torch.cat([centers, scene.coords[3:]])
    v = replace(scene, coords=coords, centers=centers).potential(rough)
    assert_finite(v)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_one_electron_density(dtype: torch.dtype, generator: torch.Generator) -> None:
    rho, sigma, _, _ = hydrogen_atom()
    r = -(rho * torch.pi).log() / 2
    direction = torch.randn(len(r), 3, dtype=torch.float64, generator=generator)
    coords = r[:, None] * direction / direction.norm(dim=1, keepdim=True)
    nucleus = torch.zeros(1, 3, dtype=torch.float64)
    inward = -2 * sigma.sqrt()[:, None] * coords / r[:, None]
    at = Scene(coords, nucleus, 2 * rho, inward, 4 * torch.pi * r**2 * 12 / 400)
    v = at.potential(random_functional(dtype=dtype))
    assert_finite(v)
    # E_x = ½E_x[2ρ], between 0.97 and 1 + κ times the LDA by the parent's form
    lda = at.weights @ lda_exchange(at.rho)
    assert 0.97 < (at.weights @ v.exc) / lda < 1 + KAPPA


def test_single_precision_energy(molecule: Scene) -> None:
    """float32 inside the network against float64, the same weights: 1e-6 of E_x = −9 hartree."""
    double = random_functional(roughness=1.0)
    single = Functional(copy.deepcopy(double.network).float())
    assert single.dtype == torch.float32 and single.double().dtype == torch.float64
    a, b = molecule.potential(double), molecule.potential(single)
    assert b.exc.dtype == b.vrho.dtype == torch.float64
    assert (molecule.weights @ (a.exc - b.exc)).abs() < 1e-5
    assert_close(b.vrho * molecule.rho, a.vrho * molecule.rho, tolerance=1e-5)


def test_the_same_twice(rough: Functional, scene: Scene) -> None:
    a, b = scene.potential(rough), scene.potential(rough)
    assert (a.exc == b.exc).all() and (a.vrho == b.vrho).all()


def test_other_sizes_obey_the_same_laws(scene: Scene, generator: torch.Generator) -> None:
    functional = Functional(random_network(**TINY, cutoff=5.0, min_exponent=0.1))
    assert functional.network.config == ModelConfig(**TINY, cutoff=5.0, min_exponent=0.1)
    rho, grad_rho = leaf(scene.rho), leaf(scene.grad_rho)
    vrho, vgrad = grad(scene.energy(functional, rho, grad_rho), (rho, grad_rho))
    v = scene.potential(functional)
    assert_close(v.vrho * scene.rho, vrho * scene.rho)
    assert_close(v.vgrad * scene.grad_rho, vgrad * scene.grad_rho)
    q = random_rotation(generator)
    assert_close(turned(scene, q).potential(functional).alpha, v.alpha)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("lattice", [None, 7.0])
def test_the_same_on_a_gpu(scene: Scene, lattice: float | None) -> None:
    cell = None if lattice is None else lattice * torch.eye(3, dtype=torch.float64)
    functional = random_functional()
    fields = scene.coords, scene.centers, scene.rho, scene.grad_rho, scene.weights
    here = Scene(*fields, cell).potential(functional)
    moved = Scene(*(x.cuda() for x in fields), None if cell is None else cell.cuda())
    there = moved.potential(Functional(functional.network.cuda()))
    assert there.exc.is_cuda
    assert_close(there.exc.cpu(), here.exc)
    assert_close(there.vrho.cpu(), here.vrho)
    assert_close(there.vgrad.cpu() * scene.grad_rho, here.vgrad * scene.grad_rho)
