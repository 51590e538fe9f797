"""Exported files, loaded again, are the functional: values, derivatives, any size, the limits."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import grad
from typer.testing import CliRunner

from networks import random_functional, random_network
from reference import OrbitalDensity
from taufree.cli import app
from taufree.export.fun import FEATURES, PROTOCOL_VERSION, energy, fun
from taufree.export.pt2 import pt2
from taufree.functional import RHO_THRESHOLD, Functional, leaf
from taufree.hosts.exchange_correlation import libxc_eff
from taufree.model.storage import load_model, save_model
from taufree.motion import motion
from tolerances import SUM_ROUNDING

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
SIZES = [(400, 5), (9, 1), (1, 4), (1, 1)]
"""Points and nuclei; none are those of the example that the export follows."""


@pytest.fixture(scope="module")
def functional() -> Functional:
    return random_functional()


@pytest.fixture(scope="module")
def exchange(functional: Functional) -> Callable[..., Tensor]:
    file = io.BytesIO(pt2(functional, {}))
    return torch.export.load(file).module()


def load_script(content: bytes) -> tuple[Any, dict[str, Any]]:
    beside = dict.fromkeys(("metadata", "features", "expected_d3_settings", "protocol_version"), "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch would rather have pt2
        module = torch.jit.load(io.BytesIO(content), _extra_files=beside)
    return module, {name: json.loads(value) for name, value in beside.items()}


@pytest.fixture(scope="module")
def script(functional: Functional) -> Any:
    return load_script(fun(functional, {}))[0]


def density(generator: torch.Generator, n_points: int, n_centers: int) -> Inputs:
    """Inputs of the exchange: ρ over many decades, below the threshold too; nuclei in reach."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    rho = torch.exp(4 * randn(n_points) - 3)
    rho[3::10] = RHO_THRESHOLD / 2
    grad_rho = rho[:, None] ** (4 / 3) * 3 * randn(n_points, 3)
    return (
        rho,
        grad_rho,
        0.1 * randn(n_points).abs(),
        2 * randn(n_points, 3),
        2 * randn(n_centers, 3),
    )


def reference(functional: Functional, x: Inputs) -> tuple[Tensor, ...]:
    """e_x, ∂E_x/∂ρ and ∂E_x/∂∇ρ, without an exported file."""
    rho, grad_rho = leaf(x[0]), leaf(x[1])
    e = functional.energy_density(rho, grad_rho, x[2], functional.geometry(*x[3:]))
    return e.detach(), *grad(x[2] @ e, (rho, grad_rho))


def assert_same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(
            a, b, rtol=SUM_ROUNDING, atol=SUM_ROUNDING * b.abs().max().item()
        )


@pytest.mark.parametrize("size", SIZES)
def test_exchange(
    functional: Functional,
    exchange: Callable[..., Tensor],
    generator: torch.Generator,
    size: tuple[int, int],
) -> None:
    x = density(generator, *size)
    rho, grad_rho = leaf(x[0]), leaf(x[1])
    e = exchange(rho, grad_rho, *x[2:])
    assert_same((e.detach(), *grad(x[2] @ e, (rho, grad_rho))), reference(functional, x))


def test_moving_points_and_nuclei(
    functional: Functional, exchange: Callable[..., Tensor], generator: torch.Generator
) -> None:
    x = density(generator, 200, 3)
    moved = leaf(x[3]), leaf(x[4])
    forces = grad(x[2] @ exchange(*x[:3], *moved), moved)
    geometry = functional.geometry(*x[3:])
    m = motion(functional.potential(*x[:3], geometry), geometry, x[4])
    assert_same(forces, (m.points, m.centers))


def test_second_derivatives(
    functional: Functional,
    exchange: Callable[..., Tensor],
    generator: torch.Generator,
) -> None:
    """The response to a change of ρ, with ∇ρ changed by half of it along."""
    x = density(generator, 60, 2)
    geometry = functional.geometry(*x[3:])

    def response(e_x: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        moved = leaf(x[0]), leaf(x[1])
        v = grad(x[2] @ e_x(*moved), moved, create_graph=True)
        change = (v[0] * x[0]).sum() + (v[1] * x[1]).sum() / 2
        return grad(change, moved)

    theirs = response(lambda n, g: functional.energy_density(n, g, x[2], geometry))
    assert_same(response(lambda n, g: exchange(n, g, *x[2:])), theirs)


def test_empty_space_and_absurd_gradients(
    functional: Functional, exchange: Callable[..., Tensor], generator: torch.Generator
) -> None:
    _, grad_rho, *rest = density(generator, 8, 2)
    rho = torch.tensor([0.0, -1e-18, 1e-30, RHO_THRESHOLD, 1.01e-9, 1e-6, 1.0, 1e6]).double()
    x = rho, 1e10 * grad_rho, *rest
    moved = leaf(x[0]), leaf(x[1])
    e = exchange(*moved, *rest)
    slopes = grad(x[2] @ e, moved)
    assert_same((e.detach(), *slopes), reference(functional, x))
    assert (e[:4] == 0).all() and all((v[:4] == 0).all() for v in slopes)


def spins(x: Inputs, share: float) -> dict[str, Tensor]:
    """The density by spin, as the protocol has it."""
    parts = torch.tensor([share, 1 - share]).double()
    values = parts[:, None] * x[0], parts[:, None, None] * x[1].mT, x[3], x[2], x[4]
    return dict(zip(FEATURES, values, strict=True))


def spin_resolved(functional: Functional, mol: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """e_xc and ∂E_xc by the spin densities and gradients, exchange ours, correlation libxc's."""
    rho, gradient, coords, w, centers = mol.values()
    fields = torch.cat([rho[:, None], gradient], 1)
    e_c, v = libxc_eff(functional.parent.correlation, fields.detach().numpy())
    held = rho.sum(0) > RHO_THRESHOLD
    exc = torch.from_numpy(e_c) * rho.sum(0) * held
    v = torch.from_numpy(v) * w * held
    parts = [
        reference(functional, (2 * rho[i], 2 * gradient[i].mT, w, coords, centers)) for i in (0, 1)
    ]
    exc = exc + sum(e for e, _, _ in parts) / 2
    vrho = v[:, 0] + torch.stack([p[1] for p in parts])
    return exc, vrho, v[:, 1:] + torch.stack([p[2].mT for p in parts])


@pytest.mark.parametrize("share", [0.5, 0.7])
@pytest.mark.parametrize("size", SIZES)
def test_exchange_correlation(
    functional: Functional,
    script: Any,
    generator: torch.Generator,
    size: tuple[int, int],
    share: float,
) -> None:
    mol = spins(density(generator, *size), share)
    theirs = spin_resolved(functional, mol)
    rho, gradient = (mol[k].requires_grad_() for k in ("density", "grad"))
    for _ in range(3):  # TorchScript compiles anew once it has seen what comes
        e = script.get_exc_density(mol)
        slopes = grad(script.get_exc(mol), (rho, gradient))
        assert_same((e.detach(), *slopes), theirs)


def test_exchange_correlation_of_molecules(
    functional: Functional, script: Any, water: OrbitalDensity, hydroxyl: OrbitalDensity
) -> None:
    for d in (water.density, hydroxyl.density):
        each = 2 // d.n_spin
        values = d.rho / each, d.grad_rho.mT / each
        rho, gradient = (x.expand(2, *x.shape[1:]).contiguous() for x in values)
        mol = dict(zip(FEATURES, (rho, gradient, d.coords, d.weights, d.centers), strict=True))
        e, _, _ = spin_resolved(functional, mol)
        found = script.get_exc(mol)
        torch.testing.assert_close(found, d.weights @ e, rtol=SUM_ROUNDING, atol=0)


def test_one_electron_and_empty_space(script: Any, generator: torch.Generator) -> None:
    x = density(generator, 8, 2)
    x[0][:3] = torch.tensor([0.0, -1e-18, RHO_THRESHOLD / 2]).double()
    mol = spins(x, 1.0)
    moved = [mol[k].requires_grad_() for k in ("density", "grad")]
    e = script.get_exc_density(mol)
    slopes = grad(mol["grid_weights"] @ e, moved)
    assert all(v.isfinite().all() for v in (e, *slopes))
    assert (e[:3] == 0).all() and all((v[..., :3] == 0).all() for v in slopes)


def test_exchange_only_where_the_correlation_needs_tau(generator: torch.Generator) -> None:
    functional = Functional(random_network(parent="r2scan"))
    assert energy(functional.parent) == "exchange"
    module, _ = load_script(fun(functional, {}))
    x = density(generator, 30, 2)
    e, _, _ = reference(functional, x)
    assert_same((module.get_exc_density(spins(x, 0.5)),), (e,))


# --- the command


@pytest.fixture
def taufree_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    network = random_network(roughness=1.0, dtype=torch.float32)
    save_model(Path("mine.safetensors"), network, {"elements": ["H", "O"]})
    runner = CliRunner()
    return lambda *args: runner.invoke(app, ["export", *args], catch_exceptions=False)


def test_command(taufree_export: Callable[..., Any], generator: torch.Generator) -> None:
    x = density(generator, 20, 2)
    functional = load_model("mine.safetensors").double()
    e, _, _ = reference(functional, x)
    for name in ("a.pt2", "b.fun"):
        done = taufree_export("mine.safetensors", name, "--json", "said.json")
        assert done.exit_code == 0, done.stderr
        said = json.loads(Path("said.json").read_text())
        assert said["bytes"] == Path(name).stat().st_size and name in done.stdout
    assert said["energy"] == "exchange-correlation"
    beside = {"metadata": ""}
    program = torch.export.load("a.pt2", extra_files=beside)
    assert_same((program.module()(*x),), (e,))
    said = json.loads(beside["metadata"])
    assert said["model"] == "mine" and said["energy"] == "exchange"
    assert said["elements"] == ["H", "O"] and said["parent"] == "MS2"
    module, beside = load_script(Path("b.fun").read_bytes())
    assert beside["protocol_version"] == PROTOCOL_VERSION and beside["features"] == list(FEATURES)
    assert beside["expected_d3_settings"] is None and beside["metadata"]["systems"] == "molecules"
    theirs = spin_resolved(functional, spins(x, 0.6))[0]
    assert_same((module.get_exc_density(spins(x, 0.6)),), (theirs,))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("mine.safetensors", "a.onnx"), "ends in .fun or .pt2"),
        (("mine.safetensors", "a"), "ends in .fun or .pt2"),
        (("mine.safetensors", "missing/a.fun"), "folder missing is missing"),
        (("mine.safetensors", "folder.pt2"), "is a folder"),
        (("nobody", "a.fun"), "No model 'nobody'"),
    ],
)
def test_bad_input_gives_one_line(
    taufree_export: Callable[..., Any], arguments: tuple[str, str], says: str
) -> None:
    Path("folder.pt2").mkdir()
    done = taufree_export(*arguments)
    assert done.exit_code == 1 and says in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""
    assert not Path("a.fun").exists()
