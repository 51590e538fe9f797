"""Sparse mixture: a partition of unity, two at work, smooth, the same as running every expert."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from taufree.model.config import ModelConfig
from taufree.model.experts import N_LOCAL, Experts, gates
from tolerances import ROUNDING

N_EXPERTS, N_INPUTS = 5, 6


@pytest.fixture
def experts() -> Experts:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = Experts(N_INPUTS, ModelConfig(n_experts=N_EXPERTS, expert_width=12)).double()
    with torch.no_grad():
        for weight in module.router.parameters():
            weight *= 5  # spreads random points over all experts
    return module


@pytest.fixture
def inputs(generator: torch.Generator) -> Tensor:
    return torch.randn(400, N_INPUTS, dtype=torch.float64, generator=generator)


def fine(n: int = 4001) -> Tensor:
    return torch.linspace(0, N_EXPERTS - 1, n, dtype=torch.float64)


def test_gates_are_a_partition_of_unity_of_two() -> None:
    g = gates(fine(), N_EXPERTS)
    torch.testing.assert_close(g.sum(1), torch.ones(len(g)).double(), rtol=ROUNDING, atol=0)
    assert (g >= 0).all()
    active = (g > 0).sum(1)
    assert active.max() == 2 and active.min() == 1
    # neighbours only
    first, last = (g > 0).double().argmax(1), N_EXPERTS - 1 - (g > 0).flip(1).double().argmax(1)
    assert ((last - first) <= 1).all()


def test_one_expert_alone_at_its_place() -> None:
    assert torch.equal(
        gates(torch.arange(N_EXPERTS).double(), N_EXPERTS), torch.eye(N_EXPERTS).double()
    )


def test_the_router_sees_the_density_alone(experts: Experts, inputs: Tensor) -> None:
    """Not what points read from tokens: that varies faster along a sphere of grid points."""
    other = inputs.clone()
    other[:, N_LOCAL:] += 1
    assert torch.equal(experts.gates(other), experts.gates(inputs))


def test_gates_are_twice_continuously_differentiable() -> None:
    """Finite differences across every join: no jump in value, slope or curvature."""
    h = 1e-4
    g = gates(fine(int((N_EXPERTS - 1) / h) + 1), N_EXPERTS)
    # quintic smoothstep over a width of 1: |S′| ≤ 15/8, |S″| ≤ 5.8, |S‴| ≤ 60
    for order, bound in ((1, 1.875), (2, 5.8), (3, 60)):
        difference = g.diff(n=order, dim=0) / h**order
        assert difference.abs().max() <= 1.01 * bound + 1e-16 / h**order * 8


def test_gates_gradcheck() -> None:
    u = torch.tensor([0.1, 0.35, 0.5, 1.7, 2.5, 3.9], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda u: gates(u, N_EXPERTS), u)
    assert gradgradcheck(lambda u: gates(u, N_EXPERTS), u)


def test_sparse_equals_dense(experts: Experts, inputs: Tensor) -> None:
    y, gate = experts(inputs)
    assert ((gate > 0).sum(0) > 10).all(), "the test needs every expert at work"
    torch.testing.assert_close(y, experts.densely(inputs)[0], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gate, experts.gates(inputs), rtol=0, atol=0)


def test_sparse_derivatives_equal_dense(experts: Experts, inputs: Tensor) -> None:
    """With respect to the inputs, once and twice, and to the weights."""
    x = inputs.requires_grad_()
    parameters = list(experts.parameters())
    derivatives = []
    for y in (experts(x)[0], experts.densely(x)[0]):
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        loss = first.square().sum()
        derivatives.append([first.detach(), *torch.autograd.grad(loss, [x, *parameters])])
    for sparse, full in zip(*derivatives, strict=True):
        scale = full.abs().max().item()
        torch.testing.assert_close(sparse, full, rtol=1e-11, atol=1e-12 * max(scale, 1))


def test_an_expert_runs_on_its_own_points_only(experts: Experts, inputs: Tensor) -> None:
    seen = [0] * N_EXPERTS
    for e, expert in enumerate(experts.experts):
        expert.register_forward_pre_hook(
            lambda _, args, e=e: seen.__setitem__(e, seen[e] + len(args[0]))
        )
    _, gate = experts(inputs)
    assert seen == (gate > 0).sum(0).tolist()
    assert sum(seen) <= 2 * len(inputs) < N_EXPERTS * len(inputs)


def test_smooth_along_a_path_through_all_regimes(experts: Experts) -> None:
    """The output's slope has no jump where one expert hands over to the next."""
    t = torch.linspace(-3, 3, 100001, dtype=torch.float64)
    direction = torch.linspace(-1, 1, N_INPUTS, dtype=torch.float64)
    with torch.no_grad():
        y, gate = experts(t[:, None] * direction)
    assert ((gate > 0).any(0)).sum() >= 3
    slope = y.diff() / (t[1] - t[0])
    assert slope.diff().abs().max() < 1e-2 * slope.abs().max()


def test_no_points(experts: Experts) -> None:
    y, gate = experts(torch.empty(0, N_INPUTS, dtype=torch.float64))
    assert y.shape == (0,) and gate.shape == (0, N_EXPERTS)
