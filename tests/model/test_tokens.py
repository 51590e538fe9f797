"""The linear map between grid points and tokens: one map, exact cutoff, invariant, tile by tile."""

from __future__ import annotations

import itertools
from typing import Any

import numba
import numpy as np
import pytest
import torch
from pyscf.dft import LebedevGrid
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from taufree.model import tokens
from taufree.model.config import ModelConfig
from taufree.model.tokens import (
    TokenMap,
    gaussian_exponents,
    gaussian_features,
    images,
    solid_harmonics,
)
from tolerances import ROUNDING, SUM_ROUNDING, SUM_ROUNDING_SINGLE

CONFIG = ModelConfig()
LATTICES = {
    "cubic": [[7.0, 0, 0], [0, 7.0, 0], [0, 0, 7.0]],
    "fcc": [[0, 5.1, 5.1], [5.1, 0, 5.1], [5.1, 5.1, 0]],
    "skew": [[4.0, 0, 0], [3.5, 6.0, 0], [-3.0, 2.0, 12.0]],
    "slab": [[4.0, 0, 1.0], [3.5, 6.0, 0]],
    "wire": [[1.0, 2.0, 4.0]],
}


def random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.fixture
def scene(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points of a long molecule's size, some out of reach of every token, and tokens."""
    coords = random(generator, 1300, 3) * torch.tensor([12.0, 3.0, 3.0])
    return coords, random(generator, 5, 3) * torch.tensor([6.0, 1.0, 1.0])


def dense(coords: Tensor, positions: Tensor, config: ModelConfig = CONFIG) -> Tensor:
    """Φ for all pairs, (n_points, n_positions, n_features)."""
    r = coords[None] - positions[:, None]
    return gaussian_features(r.mT, config).permute(2, 0, 1)


@pytest.fixture(params=["compiled", "reference"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every law holds for the compiled kernels and for the PyTorch form that a GPU runs."""
    monkeypatch.setattr(TokenMap, "compiled", request.param == "compiled")


def token_map(
    coords: Tensor, centers: Tensor, lattice: Tensor | None = None, config: ModelConfig = CONFIG
) -> TokenMap:
    visible = images(centers, lattice, coords, config.cutoff)
    return TokenMap(config, coords, len(centers), *visible)


def read(phi: Tensor, z: Tensor, y: Tensor, config: ModelConfig = CONFIG) -> Tensor:
    """What points read, from a dense Φ; z and y of every position."""
    n0, n1, n2 = config.n_radial
    first, second = phi[..., n0:].split((3 * n1, 5 * n2), -1)
    return torch.cat(
        [
            torch.einsum("iaf,afk->ik", phi, z),
            torch.einsum("ianm,ank->imk", first.unflatten(-1, (n1, 3)), y[:, :n1]).flatten(1),
            torch.einsum("ianm,ank->imk", second.unflatten(-1, (n2, 5)), y[:, n1:]).flatten(1),
        ],
        1,
    )


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=SUM_ROUNDING, atol=SUM_ROUNDING * b.abs().max().item())


def test_solid_harmonics_are_orthogonal_and_normalized() -> None:
    """∫dΩ/4π S_lm S_l'm' = δ |r|^{2l}/(2l + 1), and Σ_m S_lm² = |r|^{2l} in every direction."""
    grid = torch.from_numpy(LebedevGrid.MakeAngularGrid(50))  # exact to l = 11
    radius = 1.7
    s = solid_harmonics(radius * grid[:, :3].T, 2)
    l = torch.tensor([0.0] + [1.0] * 3 + [2.0] * 5, dtype=torch.float64)
    overlap = torch.diag(radius ** (2 * l) / (2 * l + 1))
    torch.testing.assert_close(s @ (grid[:, 3, None] * s.T), overlap, rtol=0, atol=1e-12)
    for degree in (0, 1, 2):
        norm = (s[l == degree] ** 2).sum(0)
        expected = torch.full_like(norm, radius ** (2 * degree))
        torch.testing.assert_close(norm, expected, rtol=ROUNDING, atol=0)


def test_features_are_faded_gaussians(generator: torch.Generator) -> None:
    """Σ_m Φ² of each n, l is (C(d) e^{−a d²} a^{l/2} d^l)²."""
    r = random(generator, 1, 3, 40)
    d2 = (r * r).sum(1)[0]
    phi, start = gaussian_features(r, CONFIG)[0], 0
    exponents = gaussian_exponents(CONFIG)
    torch.testing.assert_close(exponents[1:] / exponents[:-1], torch.full_like(exponents[1:], 2))
    for l, n in enumerate(CONFIG.n_radial):
        block = phi[start : start + n * (2 * l + 1)].unflatten(0, (n, 2 * l + 1))
        fade = (1 - d2 / CONFIG.cutoff**2) ** 3
        a = exponents[:n, None]
        radial = fade * torch.exp(-a * d2) * (a * d2) ** (l / 2)
        assert_close((block**2).sum(1), radial**2)
        start += n * (2 * l + 1)
    assert start == CONFIG.n_features == len(phi)


def test_features_vanish_at_the_cutoff_with_two_derivatives() -> None:
    direction = torch.tensor([0.6, -0.64, 0.48], dtype=torch.float64)
    beyond = torch.tensor([1.0, 1 + 1e-12, 2.0, 1e6], dtype=torch.float64)
    r = CONFIG.cutoff * (direction[:, None] * beyond)[None]
    assert (gaussian_features(r, CONFIG).abs() <= 1e-40).all()  # 1.0 is exact to rounding only
    assert (gaussian_features(r[..., 1:], CONFIG) == 0).all()
    # C = (1 − x²)³: cubic in the distance to the cutoff
    inside = 1 - torch.tensor([1e-3, 1e-4], dtype=torch.float64)
    phi = gaussian_features(CONFIG.cutoff * (direction[:, None] * inside)[None], CONFIG)[0]
    broadest = phi[0] * torch.exp(CONFIG.min_exponent * (CONFIG.cutoff * inside) ** 2)
    torch.testing.assert_close(broadest, (1 - inside**2) ** 3, rtol=1e-9, atol=0)


def test_maps_are_transposes(scene: tuple[Tensor, Tensor], generator: torch.Generator) -> None:
    """⟨x, Φ(z, y)⟩ = ⟨Φᵀx, (z, y)⟩."""
    m = token_map(*scene)
    x, z = random(generator, 1300, 4 + 8 * 3), random(generator, 5, CONFIG.n_features, 4)
    y = random(generator, 5, CONFIG.n_tensor_features, 3)
    there = (x * m.to_points(z, y)).sum()
    c, d = map(sum, zip(*(m.gather(x[i], 3, tiles) for i, tiles in m.blocks()), strict=True))
    torch.testing.assert_close(there, (c * z).sum() + (d * y).sum(), rtol=SUM_ROUNDING, atol=0)


def test_maps_equal_a_dense_matrix(
    scene: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    phi = dense(*scene)
    x, z = random(generator, 1300, 2), random(generator, 5, CONFIG.n_features, 3)
    m = token_map(*scene)
    assert_close(m.to_tokens(x), torch.einsum("iaf,iv->afv", phi, x))
    assert_close(m.to_points(z), torch.einsum("iaf,afk->ik", phi, z))


def test_nothing_comes_from_beyond_the_cutoff(
    scene: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    """Exactly nothing, whether or not far points share a tile with near ones."""
    coords, centers = scene
    far = torch.cdist(coords, centers).amin(1) > CONFIG.cutoff
    assert 100 < far.sum() < 1200
    m = token_map(coords, centers)
    x = random(generator, 1300, 2)
    without = torch.where(far[:, None], 0.0, x)
    assert (m.to_tokens(x) == m.to_tokens(without)).all()
    assert (m.to_points(random(generator, 5, CONFIG.n_features, 3))[far] == 0).all()


@pytest.mark.parametrize(("block", "pairs"), [(1, 7), (3, 10_000)])
def test_blocks_change_nothing(
    scene: tuple[Tensor, Tensor],
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    pairs: int,
) -> None:
    x, z = random(generator, 1300, 2), random(generator, 5, CONFIG.n_features, 3)
    m = token_map(*scene)
    c, f, blocks = m.to_tokens(x), m.to_points(z), len(list(m.blocks()))
    for name, size in {"BLOCK": block, "GPU_BLOCK": block, "PAIRS": pairs}.items():
        monkeypatch.setattr(tokens, name, size)
    assert len(list(m.blocks())) > blocks
    assert_close(m.to_tokens(x), c)
    assert_close(m.to_points(z), f)


def test_order_of_points_changes_nothing(
    scene: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    coords, centers = scene
    x, z = random(generator, 1300, 2), random(generator, 5, CONFIG.n_features, 3)
    order = torch.randperm(1300, generator=generator)
    m, permuted = token_map(coords, centers), token_map(coords[order], centers)
    assert_close(permuted.to_tokens(x[order]), m.to_tokens(x))
    assert_close(permuted.to_points(z), m.to_points(z)[order])


def test_blocks_cover_every_point_once(scene: tuple[Tensor, Tensor]) -> None:
    seen = torch.cat([points for points, _ in token_map(*scene).blocks()])
    assert (seen.sort().values == torch.arange(1300)).all()


def test_tiles_are_compact(generator: torch.Generator) -> None:
    """The space-filling curve keeps a tile near itself: 2 of 20 distant tokens, not all."""
    centers = torch.arange(20, dtype=torch.float64)[:, None] * torch.tensor([20.0, 0.0, 0.0])
    coords = centers.repeat_interleave(200, 0) + random(generator, 4000, 3)
    m = token_map(coords[torch.randperm(4000, generator=generator)], centers)
    assert len(m.token) * tokens.TILE < 4 * 4000  # 20 × 4000 without order


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("crystal", [False, True], ids=["molecule", "crystal"])
@pytest.mark.parametrize(
    "config",
    [{}, {"n_radial": (5, 4, 3)}, {"n_radial": (4, 2, 1)}, {"n_radial": (14, 1, 1), "cutoff": 8.0}],
    ids=["default", "few", "fewest", "sharp"],
)
def test_any_sizes_and_precision(
    scene: tuple[Tensor, Tensor],
    generator: torch.Generator,
    config: dict[str, Any],
    crystal: bool,
    dtype: torch.dtype,
) -> None:
    """Both directions against a dense matrix in float64, for any number of channels."""
    sizes = ModelConfig(**config)
    coords, centers, lattice = *scene, None
    positions, owner = centers, torch.arange(len(centers))
    if crystal:
        lattice = torch.tensor(LATTICES["skew"], dtype=torch.float64)
        coords, centers = coords[:150] / 4, centers[:2]
        owner, positions = images(centers, lattice, coords, sizes.cutoff)
    phi = dense(coords, positions, sizes)
    m = token_map(coords, centers, lattice, sizes)
    tolerance = SUM_ROUNDING if dtype == torch.float64 else SUM_ROUNDING_SINGLE
    for n in (1, 2, 5, 24):
        x = random(generator, len(coords), n)
        z = random(generator, len(centers), sizes.n_features, n)
        c = z.new_zeros(z.shape).index_add_(0, owner, torch.einsum("iaf,iv->afv", phi, x))
        y = random(generator, len(centers), sizes.n_tensor_features, n)
        f = read(phi, z[owner], y[owner], sizes)
        points = m.to_points(z.to(dtype), y.to(dtype))
        for ours, exact in ((m.to_tokens(x.to(dtype)), c), (points, f)):
            assert ours.dtype == dtype
            assert (ours.double() - exact).abs().max() < tolerance * exact.abs().max()


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread only")
def test_any_number_of_threads_gives_the_same_bits(
    scene: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    m = token_map(*scene)
    x, z = random(generator, 1300, 2).float(), random(generator, 5, CONFIG.n_features, 3).float()
    usual = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append((m.to_tokens(x), m.to_points(z)))
    finally:
        torch.set_num_threads(usual)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("lattice", LATTICES.values(), ids=LATTICES.keys())
def test_crystal_equals_an_explicit_supercell(
    lattice: list[list[float]], generator: torch.Generator
) -> None:
    """Every image token in reach is there once, also for points outside the home cell."""
    cell = torch.tensor(lattice, dtype=torch.float64)
    fractions = torch.rand(300, len(cell), dtype=torch.float64, generator=generator)
    coords = (2 * fractions - 0.5) @ cell + random(generator, 300, 3)
    centers = random(generator, 3, 3) * 3
    shifts = torch.tensor(list(itertools.product(range(-8, 9), repeat=len(cell)))).double() @ cell
    supercell = (shifts[:, None] + centers).flatten(0, 1)
    reach = torch.cdist(supercell, coords).amin(1) < CONFIG.cutoff
    assert reach.sum() < 0.6 * len(reach)  # large enough
    phi = dense(coords, supercell[reach]).double()
    owner = torch.arange(3).repeat(len(shifts))[reach]

    m = token_map(coords, centers, cell)
    x, z = random(generator, 300, 2), random(generator, 3, CONFIG.n_features, 3)
    expected = torch.zeros(3, CONFIG.n_features, 2, dtype=torch.float64)
    expected.index_add_(0, owner, torch.einsum("iaf,iv->afv", phi, x))
    assert_close(m.to_tokens(x), expected)
    assert_close(m.to_points(z), torch.einsum("iaf,afk->ik", phi, z[owner]))


def test_crystal_does_not_know_where_its_cell_begins(generator: torch.Generator) -> None:
    """Moving points or nuclei by lattice vectors changes nothing."""
    cell = torch.tensor(LATTICES["skew"], dtype=torch.float64)
    coords, centers = random(generator, 200, 3) * 4, random(generator, 3, 3) * 2
    x = random(generator, 200, 2)
    usual = token_map(coords, centers, cell).to_tokens(x)
    moved_points = coords + torch.randint(-3, 4, (200, 3), generator=generator).double() @ cell
    moved_centers = centers + torch.randint(-3, 4, (3, 3), generator=generator).double() @ cell
    # differences of coordinates lose a little, the sharpest Gaussian multiplies it
    for points, nuclei in ((moved_points, centers), (coords, moved_centers)):
        c = token_map(points, nuclei, cell).to_tokens(x)
        torch.testing.assert_close(c, usual, rtol=0, atol=SUM_ROUNDING * usual.abs().max().item())


def test_images_of_a_molecule_are_itself(generator: torch.Generator) -> None:
    centers = random(generator, 4, 3)
    index, positions = images(centers, None, random(generator, 10, 3), 5.0)
    np.testing.assert_array_equal(index, range(4))
    assert positions is centers


def test_derivatives_to_second_order(generator: torch.Generator) -> None:
    sizes = ModelConfig(n_radial=(2, 1, 1))
    m = token_map(random(generator, 4, 3), random(generator, 2, 3), config=sizes)
    x = random(generator, 4, 2).requires_grad_()
    z = random(generator, 2, m.config.n_features, 2).requires_grad_()
    y = random(generator, 2, m.config.n_tensor_features, 2).requires_grad_()
    for function, *arguments in ((m.to_tokens, x), (m.to_points, z), (m.to_points, z, y)):
        assert gradcheck(function, arguments) and gradgradcheck(function, arguments)
    # a non-linear use, as in the energy
    assert gradgradcheck(lambda x: (m.to_points(m.to_tokens(x) ** 2) ** 2).sum(), x)


def test_moving_everything_changes_nothing(
    scene: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    coords, centers = scene
    x, shift = random(generator, 1300, 2), 30 * random(generator, 1, 3)
    assert_close(
        token_map(coords + shift, centers + shift).to_tokens(x),
        token_map(coords, centers).to_tokens(x),
    )


def test_points_and_tokens_that_are_not_there() -> None:
    none = torch.empty(0, 3, dtype=torch.float64)
    m = token_map(none, torch.zeros(2, 3, dtype=torch.float64))
    assert (m.to_tokens(none[:, :2]) == 0).all()
    z = torch.ones(2, CONFIG.n_features, 3, dtype=torch.float64)
    assert m.to_points(z).shape == (0, 3)
