from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from networks import random_functional
from reference import OrbitalDensity
from taufree.cli import app
from taufree.console import write_json
from taufree.data.store import ReferenceDensity
from taufree.evaluation import errors, limits
from taufree.evaluation.closed_forms import jellium_slab
from taufree.evaluation.limits import (
    FACTORS,
    METALS,
    NUCLEAR_CHARGES,
    SEPARATIONS,
    evaluate,
    exchange_energy,
    table,
)
from taufree.functional import RHO_THRESHOLD, Functional
from taufree.model.storage import save_model
from taufree.physics.descriptors import (
    contracted_gradient,
    reduced_gradient_squared,
    reduced_laplacian,
)
from taufree.physics.kinetic import DEORBITALIZERS
from taufree.physics.parents import PARENTS, energy_density
from tolerances import ROUNDING

LEFT_OUT = 1e-8
"""Relative: energy where λ³ρ crosses the density of 1e-9 below which there is no functional."""


def scaled(orbitals: OrbitalDensity, factor: float) -> tuple[torch.Tensor, ...]:
    """ρ, σ, τ, ∇²ρ of twice each spin density, or of a closed shell; τ and ∇²ρ scale as λ⁵."""
    density = orbitals.density.scaled(factor)
    n = density.n_spin
    rho, sigma = n * density.rho, contracted_gradient(n * density.grad_rho)
    return rho, sigma, n * factor**5 * orbitals.tau, n * factor**5 * orbitals.lapl


@pytest.fixture(autouse=True)
def one_bond(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the molecules that are stretched, hydrogen alone."""
    monkeypatch.setattr(limits, "STRETCHED", ("H2",))


@pytest.fixture(params=["water", "hydroxyl"])
def orbitals(request: pytest.FixtureRequest) -> OrbitalDensity:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("factor", FACTORS)
def test_parent_and_classic_deorbitalizers_obey_uniform_scaling(
    orbitals: OrbitalDensity, factor: float
) -> None:
    def e_x(factor: float) -> float:
        weights = orbitals.density.scaled(factor).weights
        energy = energy_density(PARENTS["ms2"], *scaled(orbitals, factor)[:3])
        return float((energy @ weights).sum()) / orbitals.density.n_spin

    def invariants(factor: float) -> list[torch.Tensor]:
        rho, sigma, _, lapl = scaled(orbitals, factor)
        seen = rho > RHO_THRESHOLD * factor**3
        return [reduced_gradient_squared(rho, sigma)[seen], reduced_laplacian(rho, lapl)[seen]]

    assert e_x(factor) == pytest.approx(factor * e_x(1.0), rel=ROUNDING)
    torch.testing.assert_close(invariants(factor), invariants(1.0), rtol=ROUNDING, atol=0)


def test_scaling_keeps_the_electrons_and_has_an_inverse(water: OrbitalDensity) -> None:
    density = replace(water.density, lattice=torch.eye(3, dtype=torch.float64))
    contracted = density.scaled(1.5)
    n, same = (float((d.rho @ d.weights).sum()) for d in (density, contracted))
    assert same == pytest.approx(n, rel=ROUNDING)
    back = contracted.scaled(1 / 1.5)
    torch.testing.assert_close(vars(back), vars(density), rtol=ROUNDING, atol=0)


def test_slabs_of_all_densities_are_one_slab_scaled() -> None:
    dense, thin = jellium_slab(2.0), jellium_slab(6.0)
    found = dense.density.scaled(2 / 6)
    for key in ("coords", "rho", "grad_rho"):
        torch.testing.assert_close(getattr(found, key), getattr(thin.density, key))
    # at the barrier α → ∞ as the difference of τ and τ_W, which agree there
    torch.testing.assert_close(dense.alpha, thin.alpha, rtol=1e-6, atol=0)


def test_energy_and_alpha_are_those_of_the_other_errors(
    record: Callable[[str], ReferenceDensity], functional: Functional
) -> None:
    reference = record("CH")
    alpha, _ = errors.model_alpha(functional, reference.density)
    energy = exchange_energy(functional.parent, reference.density, alpha)
    expected = errors.MHA * (energy - float(reference.e_x))
    assert errors.errors(reference, alpha)["de_x_mha"] == pytest.approx(expected, abs=1e-7)


def test_functional_of_alpha_zero_has_no_error_but_in_the_slab(
    data: Path, one_orbital: Functional
) -> None:
    """A constant α̃ obeys uniform scaling; without gradient and nuclei it is 1 all the same."""
    one_orbital.network.float()  # a hundred thousand points
    result = evaluate(one_orbital, data)
    scaling = result["uniform_scaling"]
    assert scaling["count"] == 2 and scaling["grid_level"] == 1
    assert [s["name"] for s in scaling["systems"]] == ["CH", "LiF"]
    assert [mean["factor"] for mean in scaling["means"]] == list(FACTORS)
    assert max(mean["largest_relative"] for mean in scaling["means"]) < LEFT_OUT
    assert result["uniform_gas"]["max_alpha_error"] == 0
    assert [line["at"] for line in result["slabs"]] == [f"r_s = {r:g}" for r in METALS]
    assert len(result["one_electron"]) == len(NUCLEAR_CHARGES) + len(SEPARATIONS)
    for line in result["one_electron"]:
        assert line["mean_alpha"] == 0 and line["electrons"] == pytest.approx(1, rel=1e-6)
        assert set(line["errors"]) == {"model", *DEORBITALIZERS}
        found, tfvw = line["errors"]["model"], line["errors"]["TFvW"]
        assert abs(found["relative"]) < LEFT_OUT and found["mean_alpha"] < LEFT_OUT
        assert tfvw["relative"] > 0.01 and tfvw["mean_alpha"] == pytest.approx(1)
    assert [line["at"] for line in result["stretched"][::4]] == ["He", "H2, 3 R"]
    for line in result["stretched"]:
        assert line["electrons"] == pytest.approx(2, rel=1e-5) and line["mean_alpha"] < 1e-6
        assert abs(line["errors"]["model"]["relative"]) < 1e-6
        assert line["errors"]["PCopt"]["relative"] > 1e-3
    for line in result["slabs"]:
        assert 0.5 < line["mean_alpha"] < 1.5 and abs(line["errors"]["model"]["relative"]) > 1e-3


def test_errors_of_an_untrained_network_are_seen(data: Path, tmp_path: Path) -> None:
    result = evaluate(random_functional(dtype=torch.float32), data)
    scaling = result["uniform_scaling"]
    assert min(mean["relative"] for mean in scaling["means"]) > 1e-3
    system, mean = scaling["systems"][0], scaling["means"][-1]
    both = [s["error_mha"][-1] / s["e_x_hartree"] / 2000 for s in scaling["systems"]]
    assert mean["relative"] == pytest.approx(sum(map(abs, both)) / 2)
    assert system["n_electrons"] == 7 and len(system["error_mha"]) == len(FACTORS)
    assert result["uniform_gas"]["max_alpha_error"] == 0
    slabs = [line["errors"] for line in result["slabs"]]
    for name in DEORBITALIZERS:  # the slabs are one density, scaled
        assert slabs[0][name]["relative"] == pytest.approx(slabs[-1][name]["relative"], rel=1e-6)
    alphas = [slab["model"]["mean_alpha"] for slab in slabs]
    assert alphas[0] != pytest.approx(alphas[-1], rel=1e-4)  # the network tells lengths apart

    console = Console(file=io.StringIO(), width=120)
    console.print(table(result))
    shown = console.file.getvalue()
    for text in ("random for MS2", "2 molecules", "λ = 0.833", "r_s = 6", "H₂⁺, R = 8", "PCopt"):
        assert text in shown
    write_json(tmp_path / "limits.json", result)
    assert json.loads((tmp_path / "limits.json").read_text())["slabs"] == result["slabs"]


def test_command(data: Path, functional: Functional, tmp_path: Path) -> None:
    save_model(tmp_path / "untrained.safetensors", functional.network, {})
    options = ["evaluate", "limits", "--model", str(tmp_path / "untrained")]
    file = tmp_path / "l.json"
    done = CliRunner().invoke(app, [*options, str(data), "--json", str(file)])
    assert done.exit_code == 0, done.stderr
    assert "untrained for MS2" in done.stdout and "jellium slab" in done.stdout
    assert json.loads(file.read_text())["uniform_scaling"]["count"] == 2

    failed = CliRunner().invoke(app, [*options, str(tmp_path)])
    assert failed.exit_code == 1 and failed.stdout == ""
    message = failed.stderr.splitlines()[-1]
    assert message.startswith("taufree: ") and "taufree data build" in message
