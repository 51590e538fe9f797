"""Exact conditions that the network has not by construction: measured, so that they can be stated.

* Uniform coordinate scaling, E_x[ρ_λ] = λ E_x[ρ] with ρ_λ(r) = λ³ρ(λr): p and α are invariant, so
  the parent and every α̃(p, q) obey it; a network that knows ln ρ and lengths had to learn it.
* The uniform gas, α = 1: exact without gradient and without a nucleus in reach (checked here). The
  jellium slab between infinite barriers has a gradient and no nuclei at all, like nothing in the
  training data.
* One electron, α = 0: hydrogen-like atoms, and H₂⁺ as it dissociates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyscf import dft, gto
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor

from taufree.data.splits import split_of
from taufree.data.store import load_record, manifest_checksum, read_manifest
from taufree.errors import UserError
from taufree.evaluation.density import MODEL
from taufree.evaluation.errors import MHA
from taufree.functional import Functional, hold
from taufree.model.storage import load_model
from taufree.physics.descriptors import (
    K_F,
    contracted_gradient,
    iso_orbital_indicator,
    lda_exchange,
    reduced_gradient_squared,
    reduced_laplacian,
)
from taufree.physics.kinetic import DEORBITALIZERS
from taufree.physics.parents import Parent
from taufree.quantities import GridDensity

FACTORS = (0.5, 0.7, 1 / 1.2, 1.2, 1.5, 2.0)
"""λ of uniform scaling: 1/2 and 2 bracket what bonds, ions and neighbours in a row do to a shell."""
SCALED_KIND, SCALED_LEVEL = "g2", 1
"""Molecules of the test split whose densities are scaled, and the grid level of their records."""
METALS = (2.0, 3.0, 4.0, 5.0, 6.0)
"""r_s of the slabs, bohr: aluminium is near 2, caesium near 6."""
WAVELENGTHS = 4
"""Thickness of a slab's background in Fermi wavelengths 2π/k_F."""
SLAB_POINTS = 800
"""Gauss-Legendre points across a slab; twice as many change E_x by less than 1e-6 of it."""
NUCLEAR_CHARGES = (1, 2, 3)
SEPARATIONS = (2.0, 4.0, 6.0, 8.0)
"""Bond lengths of H₂⁺, bohr; 2 is its equilibrium."""
ONE_ELECTRON_LEVEL = 3
"""PySCF grid level for one electron."""
SHOWN = (MODEL, "PCopt", "TFvW")
"""Deorbitalizers in the table; the result has all."""


@dataclass(frozen=True)
class ExactDensity:
    """A density in closed form, with ∇²ρ and the α of its orbitals, (n_spin, n_points) each."""

    density: GridDensity
    lapl: Tensor
    alpha: Tensor


def evaluate(model: str | Functional, data: Path, console: Console | None = None) -> dict[str, Any]:
    """Errors of a model in limits where the exact answer, or the parent's, is known.

    Parameters
    ----------
    model : str or Functional
        Name of a bundled model, a path, or a loaded functional.
    data : Path
        Folder of ``taufree data build``, for the densities to scale.
    console : Console, optional
        Where progress is shown.

    Returns
    -------
    dict
        ``uniform_scaling``: ``means`` over ``count`` molecules, for each ``factor`` λ the mean of
        |E_x[ρ_λ] − λE_x[ρ]| ``relative`` to |λE_x[ρ]|, its ``largest_relative``, and
        ``mha_per_electron``; and of each of the ``systems`` ``e_x_hartree`` = E_x[ρ] of the model
        and the signed ``error_mha`` at each of ``factors``.
        ``uniform_gas``: ``max_alpha_error``, the largest |α̃ − 1| at the densities of ``r_s``.
        ``slabs`` and ``one_electron``: of each density its name ``at``, number of ``electrons``,
        the parent's ``e_x_hartree`` at the exact α (of a slab both per bohr²), ``mean_alpha`` =
        ∫ρα/∫ρ, and ``errors`` of each deorbitalizer: signed ``relative`` and ``mha_per_electron``
        of E_x, and its ``mean_alpha``.

    Raises
    ------
    UserError
        The data hold no density to scale, or are damaged.
    """
    functional = load_model(model) if isinstance(model, str) else model
    scaling = _uniform_scaling(functional, data, console)
    slabs = [(f"r_s = {r_s:g}", jellium_slab(r_s)) for r_s in METALS]
    return {
        "model": functional.name,
        "parent": functional.parent.xc,
        "data": {"folder": data, "checksum": manifest_checksum(read_manifest(data))},
        "uniform_scaling": scaling,
        "uniform_gas": _uniform_gas(functional),
        "slabs": [_errors(functional, at, exact) for at, exact in slabs],
        "one_electron": [_errors(functional, at, exact) for at, exact in _one_electron_systems()],
    }


def scale_uniformly(density: GridDensity, factor: float) -> GridDensity:
    """ρ_λ(r) = λ³ρ(λr) on the grid and nuclei at r/λ: λ > 1 contracts, N stays."""
    return replace(
        density,
        coords=density.coords / factor,
        weights=density.weights / factor**3,
        rho=density.rho * factor**3,
        grad_rho=density.grad_rho * factor**4,
        centers=density.centers / factor,
        lattice=None if density.lattice is None else density.lattice / factor,
    )


def jellium_slab(
    r_s: float, wavelengths: float = WAVELENGTHS, n_points: int = SLAB_POINTS
) -> ExactDensity:
    """Jellium between infinite barriers, per area: orbitals √(2/L) sin(k_n z) e^{ik·r}, k_n = nπ/L.

    With η_n = (2E_F − k_n²)/2π electrons per area in subband n,

    ρ = (2/L) Σ_n η_n sin²(k_n z),  τ = (2/L) Σ_n η_n [(π/2) η_n sin²(k_n z) + (k_n²/2) cos²(k_n z)]

    The barriers stand 3π/(8k_F) outside a background of density 3/(4πr_s³), where a thick slab is
    neutral: V. Sahni, J. B. Krieger and J. Gruenebaum, Phys. Rev. B 15, 1941 (1977),
    doi:10.1103/PhysRevB.15.1941. Slabs of any r_s are one density, uniformly scaled.

    Parameters
    ----------
    r_s : float
        Wigner-Seitz radius of the background, bohr.
    wavelengths : float
        Thickness of the background in 2π/k_F.
    n_points : int
        Points along z; their weights are lengths, integrals are per area.
    """
    k_f = K_F * (3 / (4 * math.pi)) ** (1 / 3) / r_s
    thickness = wavelengths * 2 * math.pi / k_f
    length = thickness + 2 * 3 * math.pi / (8 * k_f)
    electrons = thickness * 3 / (4 * math.pi * r_s**3)  # per area
    n = torch.arange(1, 2 + math.ceil(2 * k_f * length / math.pi), dtype=torch.float64)
    k = n * math.pi / length
    level = (2 * math.pi * electrons + (k**2).cumsum(0)) / n  # 2E_F, if n subbands are occupied
    occupied = level > k**2
    k = k[occupied]
    eta = (level[occupied][-1] - k**2) / (2 * math.pi)

    x, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(n_points))
    z = (1 + x) * length / 2
    sin2, cos2 = torch.sin(z[:, None] * k) ** 2, torch.cos(z[:, None] * k) ** 2
    rho = 2 / length * sin2 @ eta
    slope = 2 / length * torch.sin(2 * z[:, None] * k) @ (eta * k)
    lapl = 4 / length * (cos2 - sin2) @ (eta * k**2)
    tau = 2 / length * (sin2 @ (math.pi / 2 * eta**2) + cos2 @ (eta * k**2 / 2))
    zero = torch.zeros_like(z)
    density = GridDensity(
        coords=torch.stack([zero, zero, z], -1),
        weights=w * length / 2,
        rho=rho[None],
        grad_rho=torch.stack([zero, zero, slope], -1)[None],
        centers=z.new_zeros(0, 3),
    )
    return ExactDensity(density, lapl[None], iso_orbital_indicator(rho, slope**2, tau)[None])


def one_electron(centers: Tensor, charge: float = 1.0) -> ExactDensity:
    """One electron in ψ ∝ Σ_A e^{−Z|r − R_A|}: an atom, or the simplest bond; α = 0.

    Parameters
    ----------
    centers : Tensor, (n_centers, 3), bohr
    charge : float
        Z; the grid is that of hydrogen, scaled.
    """
    nuclei = [("H", position) for position in (charge * centers).tolist()]
    grids = dft.gen_grid.Grids(gto.M(atom=nuclei, unit="Bohr", spin=None, verbose=0))
    grids.level = ONE_ELECTRON_LEVEL
    grids.build()
    coords = torch.from_numpy(grids.coords) / charge
    weights = torch.from_numpy(grids.weights) / charge**3

    x = charge * torch.cdist(centers, centers)
    norm = math.pi / charge**3 * float((torch.exp(-x) * (1 + x + x**2 / 3)).sum())  # ∫(Σ_A …)²
    r = coords[:, None] - centers  # (n_points, n_centers, 3)
    d = r.norm(dim=-1)
    phi = torch.exp(-charge * d) / math.sqrt(norm)
    psi = phi.sum(1)
    grad_psi = -charge * ((phi / d)[..., None] * r).sum(1)
    lapl_psi = ((charge**2 - 2 * charge / d) * phi).sum(1)
    up = psi**2, 2 * psi[:, None] * grad_psi, 2 * (grad_psi.square().sum(1) + psi * lapl_psi)
    rho, grad_rho, lapl = (torch.stack([x, torch.zeros_like(x)]) for x in up)
    density = GridDensity(coords, weights, rho, grad_rho, centers)
    return ExactDensity(density, lapl, torch.zeros_like(rho))


def exchange_energy(parent: Parent, density: GridDensity, alpha: Tensor) -> float:
    """E_x = ½ Σσ ∫ e_x(2ρσ, α), or ∫ e_x(ρ, α) for a closed shell; α (n_spin, n_points)."""
    rho, sigma, held = hold(*_spin_scaled(density))
    exc = held * lda_exchange(rho) * parent.enhancement(reduced_gradient_squared(rho, sigma), alpha)
    return float((exc @ density.weights).sum()) / density.n_spin


def model_alpha(functional: Functional, density: GridDensity) -> Tensor:
    """α̃ of a model, (n_spin, n_points)."""
    on_device = density.to(functional.device)
    geometry = functional.geometry(on_device.coords, on_device.centers, on_device.lattice)
    channels = zip(*_spin_scaled(on_device), strict=True)
    parts = [functional.potential(*channel, on_device.weights, geometry) for channel in channels]
    return torch.stack([part.alpha for part in parts]).to(density.rho)


def _spin_scaled(density: GridDensity) -> tuple[Tensor, Tensor]:
    """ρ and σ of the spin-unpolarized densities n_spin·ρσ, (n_spin, n_points) each."""
    return density.n_spin * density.rho, contracted_gradient(density.n_spin * density.grad_rho)


def _uniform_scaling(functional: Functional, data: Path, console: Console | None) -> dict[str, Any]:
    parent, systems = functional.parent, []
    chosen = [
        entry
        for entry in read_manifest(data).values()
        if entry.status == "done"
        and entry.kind == SCALED_KIND
        and split_of(entry.formula) == "test"
    ]
    for entry in track(chosen, "scaled densities", console=console, disable=console is None):
        for record in load_record(data / entry.file, [SCALED_LEVEL], ["converged"], entry.sha256):
            energies = [
                exchange_energy(parent, scaled, model_alpha(functional, scaled))
                for scaled in (scale_uniformly(record.density, x) for x in (1.0, *FACTORS))
            ]
            e_x, of_scaled = energies[0], energies[1:]
            errors = [MHA * (e - x * e_x) for x, e in zip(FACTORS, of_scaled, strict=True)]
            systems.append(
                {
                    "name": record.name,
                    "n_electrons": record.n_electrons,
                    "e_x_hartree": e_x,
                    "error_mha": errors,
                }
            )
    if not systems:
        raise UserError(
            f"{data} holds no {SCALED_KIND} density of the test split at grid level {SCALED_LEVEL}:"
            f" run `taufree data build {data} --kind {SCALED_KIND} --grid-level {SCALED_LEVEL}`."
        )
    error = torch.tensor([s["error_mha"] for s in systems], dtype=torch.float64).abs()
    e_x, n = (
        torch.tensor([s[key] for s in systems], dtype=torch.float64)[:, None]
        for key in ("e_x_hartree", "n_electrons")
    )
    relative = error / (MHA * e_x.abs() * torch.tensor(FACTORS))
    means = {
        "factor": torch.tensor(FACTORS, dtype=torch.float64),
        "relative": relative.mean(0),
        "largest_relative": relative.amax(0),
        "mha_per_electron": (error / n).mean(0),
    }
    rows = zip(*(values.tolist() for values in means.values()), strict=True)
    return {
        "count": len(systems),
        "grid_level": SCALED_LEVEL,
        "factors": list(FACTORS),
        "means": [dict(zip(means, row, strict=True)) for row in rows],
        "systems": systems,
    }


def _uniform_gas(functional: Functional) -> dict[str, Any]:
    r_s = [0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0, 100.0]
    rho = 3 / (4 * math.pi * torch.tensor(r_s, dtype=torch.float64) ** 3)
    nowhere = torch.zeros(len(r_s), 3, dtype=torch.float64)
    gas = GridDensity(nowhere, torch.ones_like(rho), rho[None], nowhere[None], nowhere[:0])
    return {"r_s": r_s, "max_alpha_error": float((model_alpha(functional, gas) - 1).abs().max())}


def _one_electron_systems() -> Iterator[tuple[str, ExactDensity]]:
    for charge in NUCLEAR_CHARGES:
        yield f"Z = {charge}", one_electron(torch.zeros(1, 3, dtype=torch.float64), charge)
    for r in SEPARATIONS:
        ends = torch.tensor([[0, 0, -r / 2], [0, 0, r / 2]], dtype=torch.float64)
        yield f"H₂⁺, R = {r:g}", one_electron(ends)


def _errors(functional: Functional, at: str, exact: ExactDensity) -> dict[str, Any]:
    density, parent = exact.density, functional.parent
    rho, sigma, held = hold(*_spin_scaled(density))
    p, q = reduced_gradient_squared(rho, sigma), reduced_laplacian(rho, density.n_spin * exact.lapl)
    electrons = float((density.rho @ density.weights).sum())
    e_x = exchange_energy(parent, density, exact.alpha)

    def mean(alpha: Tensor) -> float:
        return float((held * density.rho * alpha @ density.weights).sum()) / electrons

    errors = {}
    alphas = {name: deorbitalizer(p, q) for name, deorbitalizer in DEORBITALIZERS.items()}
    for name, alpha in {MODEL: model_alpha(functional, density), **alphas}.items():
        error = exchange_energy(parent, density, alpha) - e_x
        errors[name] = {
            "relative": error / abs(e_x),
            "mha_per_electron": MHA * error / electrons,
            "mean_alpha": mean(alpha),
        }
    return {
        "at": at,
        "electrons": electrons,
        "e_x_hartree": e_x,
        "mean_alpha": mean(exact.alpha),
        "errors": errors,
    }


def table(result: dict[str, Any]) -> Table:
    """Errors of E_x in every limit: percent, and mHa per electron."""
    scaling, gas = result["uniform_scaling"], result["uniform_gas"]
    table = Table(
        title=f"exact conditions: errors of E_x, {escape(Path(result['model']).name)} for "
        f"{result['parent']}",
        title_justify="left",
    )
    table.add_column("condition")
    table.add_column("at")
    for unit in ("%", "mHa/electron"):
        for name in SHOWN:
            table.add_column(f"{name}\n{unit}", justify="right")
    by_form = ["0"] * (len(SHOWN) - 1)
    for i, mean in enumerate(scaling["means"]):
        label = f"E_x[ρ_λ] = λE_x[ρ], {scaling['count']} molecules" if i == 0 else ""
        percent, mha = f"{100 * mean['relative']:.3f}", f"{mean['mha_per_electron']:.2f}"
        table.add_row(label, f"λ = {mean['factor']:.3g}", percent, *by_form, mha, *by_form)
    table.add_section()
    for title, key in (("jellium slab", "slabs"), ("one electron", "one_electron")):
        for i, line in enumerate(result[key]):
            errors = [line["errors"][name] for name in SHOWN]
            percents = [f"{100 * e['relative']:+.3f}" for e in errors]
            mhas = [f"{e['mha_per_electron']:+.2f}" for e in errors]
            table.add_row(title if i == 0 else "", line["at"], *percents, *mhas)
        table.add_section()
    table.caption = (
        "scaling: means of absolute values; α(p, q) obeys it by form. Others: against the parent "
        f"at the exact α. Uniform gas: |α̃ − 1| ≤ {gas['max_alpha_error']:.1g}."
    )
    return table
