"""Self-attention between tokens: softmax of finite range, the order of tokens without meaning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from taufree.model.attention import Bonds, EncoderLayer, SelfAttention, bonds_between, make_bonds
from tolerances import ROUNDING, SUM_ROUNDING

CUTOFF, WIDTH, HEADS = 6.0, 8, 2


@pytest.fixture
def attention() -> SelfAttention:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return SelfAttention(WIDTH, HEADS).double()


@pytest.fixture
def layer() -> EncoderLayer:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return EncoderLayer(WIDTH, HEADS).double()


def random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def bonds(centers: Tensor, lattice: Tensor | None = None) -> Bonds:
    return bonds_between(centers, lattice, CUTOFF)


def pairs(b: Bonds) -> set[tuple[int, int]]:
    return set(zip(b.to.tolist(), b.source.tolist(), strict=True))


def test_bonds_are_all_pairs_within_the_cutoff(generator: torch.Generator) -> None:
    centers = 4 * random(generator, 12, 3)
    distance = (centers[:, None] - centers).norm(dim=-1)
    expected = {(i, j) for i, j in (distance < CUTOFF).nonzero().tolist()}
    assert 12 < len(expected) < 144
    b = bonds(centers)
    assert pairs(b) == expected and len(b.to) == len(expected)
    torch.testing.assert_close(b.squared_distance, distance[b.to, b.source] ** 2)


def test_bonds_fade_to_nothing_at_the_cutoff() -> None:
    d = torch.tensor([0.0, 3.0, CUTOFF * (1 - 1e-4)], dtype=torch.float64)
    fade = make_bonds(torch.zeros(3), torch.zeros(3), d**2, CUTOFF).fade
    torch.testing.assert_close(fade, (1 - d**2 / CUTOFF**2) ** 3, rtol=ROUNDING, atol=0)
    assert fade[0] == 1 and fade[-1] < 1e-11


def test_attention_is_softmax_with_a_distance_bias(
    attention: SelfAttention, generator: torch.Generator
) -> None:
    """Against torch's own attention over the dense matrix of pairs."""
    centers, x = 2 * random(generator, 7, 3), random(generator, 7, WIDTH)
    d2 = (centers[:, None] - centers).square().sum(-1)
    q, k, v = (
        part.unflatten(1, (HEADS, -1)).transpose(0, 1) for part in attention.qkv(x).chunk(3, 1)
    )
    ranges = torch.exp(attention.log_range)[:, None, None]
    fade = torch.log((1 - d2 / CUTOFF**2).clamp_min(0) ** 3)
    mean = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=-d2 / ranges**2 + fade
    )
    expected = attention.out(mean.transpose(0, 1).flatten(1))
    torch.testing.assert_close(attention(x, bonds(centers)), expected, rtol=1e-12, atol=1e-12)


def test_order_of_tokens_changes_nothing(layer: EncoderLayer, generator: torch.Generator) -> None:
    centers, x = 3 * random(generator, 9, 3), random(generator, 9, WIDTH)
    order = torch.randperm(9, generator=generator)
    permuted = layer(x[order], bonds(centers[order]))
    torch.testing.assert_close(permuted, layer(x, bonds(centers))[order], rtol=1e-12, atol=1e-12)


def test_fragments_beyond_the_cutoff_are_independent(
    layer: EncoderLayer, generator: torch.Generator
) -> None:
    a, b = random(generator, 4, 3), random(generator, 3, 3) + 50.0
    x_a, x_b = random(generator, 4, WIDTH), random(generator, 3, WIDTH)
    together = layer(torch.cat([x_a, x_b]), bonds(torch.cat([a, b])))
    apart = torch.cat([layer(x_a, bonds(a)), layer(x_b, bonds(b))])
    torch.testing.assert_close(together, apart, rtol=1e-13, atol=1e-13)


def test_a_token_that_arrives_at_the_cutoff_is_not_noticed(
    layer: EncoderLayer, generator: torch.Generator
) -> None:
    """Continuous, and with two derivatives, as it crosses the cutoff."""
    x, here = random(generator, 2, WIDTH), torch.zeros(1, 3, dtype=torch.float64)

    def first_token(distance: float) -> Tensor:
        there = torch.tensor([[0.0, 0.0, distance]], dtype=torch.float64)
        return layer(x, bonds(torch.cat([here, there])))[0]

    alone = first_token(CUTOFF * 1.001)
    torch.testing.assert_close(alone, layer(x[:1], bonds(here))[0], rtol=1e-13, atol=1e-14)
    change = [(first_token(CUTOFF * (1 - h)) - alone).abs().max() for h in (1e-2, 1e-3)]
    assert 0 < change[1] < 1.2e-3 * change[0]  # cubic in the distance to the cutoff


def test_crystal_bonds_are_those_of_a_supercell(generator: torch.Generator) -> None:
    lattice = torch.tensor([[4.0, 0, 0], [1.0, 5.0, 0], [0.5, -1.0, 4.5]]).double()
    centers = 2 * random(generator, 2, 3)
    steps = torch.cartesian_prod(*[torch.arange(-5.0, 6.0, dtype=torch.float64)] * 3)
    d2 = (centers[:, None, None] - (centers[:, None] + steps @ lattice)).square().sum(-1)
    expected = sorted(d2[d2 < CUTOFF**2].tolist())
    b = bonds(centers, lattice)
    assert sorted(b.squared_distance.tolist()) == pytest.approx(expected, abs=SUM_ROUNDING)
    for i in range(2):
        for j in range(2):
            held = (b.to == i) & (b.source == j)
            assert held.sum() == (d2[i, j] < CUTOFF**2).sum()


def test_supercell_gives_the_cells_answer(layer: EncoderLayer, generator: torch.Generator) -> None:
    lattice = torch.tensor([[4.0, 0, 0], [1.0, 5.0, 0], [0.5, -1.0, 4.5]]).double()
    centers, x = 2 * random(generator, 2, 3), random(generator, 2, WIDTH)
    cell = layer(x, bonds(centers, lattice))
    doubled = torch.cat([centers, centers + lattice[0]])
    supercell = layer(x.repeat(2, 1), bonds(doubled, lattice * torch.tensor([[2.0], [1], [1]])))
    torch.testing.assert_close(supercell, cell.repeat(2, 1), rtol=1e-12, atol=1e-12)


def test_huge_scores_do_not_overflow(attention: SelfAttention, generator: torch.Generator) -> None:
    x = 1e6 * random(generator, 5, WIDTH)
    y = attention(x, bonds(random(generator, 5, 3)))
    assert y.isfinite().all()


def test_derivatives_to_second_order(layer: EncoderLayer, generator: torch.Generator) -> None:
    b = bonds(2 * random(generator, 3, 3))
    x = random(generator, 3, WIDTH).requires_grad_()
    assert gradcheck(lambda x: layer(x, b), x) and gradgradcheck(lambda x: layer(x, b), x)
