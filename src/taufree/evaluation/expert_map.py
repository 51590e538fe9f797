"""A plane through a structure: which expert owns each point, and how its exchange compares."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import ListedColormap, Normalize, SymLogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pyscf.dft import numint
from pyscf.pbc.dft import numint as pbc_numint
from pyscf.pbc.gto import Cell
from torch import Tensor

from taufree.errors import UserError
from taufree.files import write_atomic
from taufree.functional import Functional, hold
from taufree.hosts.exchange_correlation import nuclei, periodic_vectors
from taufree.hosts.single_point import Settings, mean_field
from taufree.hosts.structures import read_structure
from taufree.model.storage import load_model
from taufree.physics.descriptors import contracted_gradient, kinetic_energy_density
from taufree.physics.parents import Parent, energy_density
from taufree.quantities import GridDensity

Array = NDArray[np.float64]

MARGIN = 3.5  # bohr beyond the outermost atoms of a molecule
CRYSTAL_EXTENT = 1.5  # times the distance of the second neighbour that spans the plane
ON_PLANE = 0.3  # bohr: nuclei closer to it are marked
SHOWN_ABOVE = 1e-4  # bohr⁻³: where there is less density, derivatives are not drawn
BLOCK = 20_000  # grid points whose AO values are held at once
QUANTITIES = ("e_x", "v_ρ", "v_σ", "v_τ")


@dataclass(frozen=True)
class Plane:
    """Points origin + x·u + y·v (bohr), u and v orthonormal."""

    origin: Array
    u: Array
    v: Array
    x: Array
    y: Array

    @property
    def coords(self) -> Array:
        """All points, (n_y·n_x, 3)."""
        x, y = np.meshgrid(self.x, self.y)
        points: Array = self.origin + x[..., None] * self.u + y[..., None] * self.v
        return points.reshape(-1, 3)

    def project(self, positions: Array) -> tuple[Array, Array]:
        """In-plane coordinates of positions, and their heights over the plane."""
        r = positions - self.origin
        return np.stack([r @ self.u, r @ self.v], -1), r @ np.cross(self.u, self.v)


def principal_plane(positions: Array, n_points: int) -> Plane:
    """The plane of the two longest principal axes of a molecule's atoms, with a margin."""
    origin = positions.mean(0)
    # three far weaker, unequal points settle the axes of atoms and of linear molecules
    cloud = np.vstack([positions - origin, 1e-3 * np.diag([1.0, 2.0, 3.0])])
    u, v, _ = np.linalg.svd(cloud, full_matrices=False)[2]
    extent = (positions - origin) @ np.stack([u, v], -1)
    ends = extent.min(0) - MARGIN, extent.max(0) + MARGIN
    x, y = (np.linspace(a, b, n_points) for a, b in zip(*ends, strict=True))
    return Plane(origin, u, v, x, y)


def bond_plane(positions: Array, lattice: Array, n_points: int) -> tuple[Plane, Array]:
    """The plane of a crystal's first atom and its two nearest neighbours off one line.

    Returns the positions of all images near it, too.
    """
    cells = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    images = (positions + (cells @ lattice)[:, None]).reshape(-1, 3)
    bonds = images - positions[0]
    bonds = bonds[np.argsort(np.linalg.norm(bonds, axis=1), kind="stable")][1:]
    first = bonds[0] / np.linalg.norm(bonds[0])
    second = next(b for b in bonds if np.linalg.norm(np.cross(first, b)) > 1e-2 * np.linalg.norm(b))
    v = second - (second @ first) * first
    reach = CRYSTAL_EXTENT * float(np.linalg.norm(second))
    axis = np.linspace(-reach, reach, n_points)
    return Plane(positions[0], first, v / np.linalg.norm(v), axis, axis), images


def evaluate(path: Path, settings: Settings, n_points: int = 160) -> tuple[dict[str, Any], Figure]:
    """Converge the parent for a structure file and look at a model on a plane of its density.

    Of an open shell, the majority spin is drawn: the spin-unpolarized density 2ρ↑, which is what
    spin scaling hands to the functional. Tokens read the integration grid; the plane's points take
    part with weight zero.

    Returns
    -------
    dict and Figure
        ``electron_share`` of each expert, over all of space; mean absolute differences of e_x and
        its derivatives over the points drawn.

    Raises
    ------
    UserError
        The file or the settings cannot be used, or the parent does not converge.
    """
    functional = load_model(settings.model).double()
    atoms = read_structure(path)
    mf = mean_field(atoms, settings)
    mf.xc = functional.parent.xc
    mf.kernel()
    if not mf.converged:
        raise UserError(f"the parent did not converge for {path}: check --charge and --spin.")
    positions = nuclei(mf.mol)
    lattice = periodic_vectors(mf.mol) if isinstance(mf.mol, Cell) else None
    if lattice is None:
        plane, images = principal_plane(positions, n_points), positions
    else:
        if len(lattice) != 3:
            raise UserError(f"{path} is periodic in {len(lattice)} directions: give 0 or 3.")
        plane, images = bond_plane(positions, lattice, n_points)

    grids = mf.grids
    if grids.coords is None:
        grids.build()
    coords = np.vstack([grids.coords, plane.coords])
    fields = fields_at(mf, coords)  # (n_spin, 5, n): ρ, ∇ρ, τ
    density = GridDensity(
        coords=torch.from_numpy(coords),
        weights=torch.from_numpy(np.append(grids.weights, np.zeros(len(plane.coords)))),
        rho=fields[:, 0],
        grad_rho=fields[:, 1:4].mT.contiguous(),
        centers=torch.from_numpy(positions),
        lattice=None if lattice is None else torch.from_numpy(lattice),
    )
    return _draw(functional, density, fields[:, 4], plane, images, path.name)


def fields_at(mf: Any, coords: Array) -> Tensor:
    """ρ, ∇ρ and the orbitals' τ of each spin of a converged PySCF object, (n_spin, 5, n_points)."""
    mol, dm = mf.mol, mf.make_rdm1()
    periodic = isinstance(mol, Cell)
    unrestricted = dm.ndim == (4 if periodic else 3)
    blocks = []
    for start in range(0, len(coords), BLOCK):
        part = coords[start : start + BLOCK]
        if periodic:
            ni = pbc_numint.KNumInt(mf.kpts)
            ao = ni.eval_ao(mol, part, mf.kpts, deriv=1)
        else:
            ni = numint.NumInt()
            ao = ni.eval_ao(mol, part, deriv=1)
        options = {"xctype": "MGGA", "hermi": 1, "with_lapl": False}
        channels = dm if unrestricted else [dm]
        blocks.append([np.real(ni.eval_rho(mol, ao, d, **options)) for d in channels])
    return torch.from_numpy(np.concatenate(blocks, -1))


def _draw(
    functional: Functional,
    density: GridDensity,
    tau: Tensor,
    plane: Plane,
    images: Array,
    title: str,
) -> tuple[dict[str, Any], Figure]:
    geometry = functional.geometry(density.coords, density.centers, density.lattice)
    rho, grad_rho = next(iter(density.unpolarized))
    part = functional.potential(rho, grad_rho, density.weights, geometry)
    electrons = density.weights * rho
    share = (electrons @ part.gates.double()) / electrons.sum()

    n = len(plane.coords)
    shown, sigma, _ = hold(rho[-n:], contracted_gradient(grad_rho[-n:]))
    tau_tilde = kinetic_energy_density(shown, sigma, part.alpha[-n:])
    exact = exchange(functional.parent, shown, sigma, density.n_spin * tau[0, -n:])
    found = exchange(functional.parent, shown, sigma, tau_tilde)
    dense = rho[-n:] > SHOWN_ABOVE
    differences = {
        name: float((a - b)[dense].abs().mean())
        for name, a, b in zip(QUANTITIES, found, exact, strict=True)
    }
    result = {
        "structure": title,
        "model": functional.name,
        "parent": functional.parent.xc,
        "electron_share": share.tolist(),
        "mean_absolute_difference": differences,
    }
    figure = _figure(plane, images, part.gates[-n:].numpy(), dense.numpy(), exact, found, title)
    return result, figure


def exchange(parent: Parent, rho: Tensor, sigma: Tensor, tau: Tensor) -> list[Tensor]:
    """e_x and its derivatives by ρ, σ, τ."""
    x = [a.detach().requires_grad_() for a in (rho, sigma, tau)]
    with torch.enable_grad():
        exc = energy_density(parent, *x)
        derivatives = torch.autograd.grad(exc.sum(), x)
    return [exc.detach(), *derivatives]


def _figure(
    plane: Plane,
    images: Array,
    gates: Array,
    dense: NDArray[np.bool_],
    exact: list[Tensor],
    found: list[Tensor],
    title: str,
) -> Figure:
    shape = len(plane.y), len(plane.x)
    figure = Figure(figsize=(17, 7), layout="constrained")
    panels = figure.subplot_mosaic(
        [["experts", *(f"{q}{i}" for q in range(4))] for i in range(3)],
        width_ratios=[1.7, 1, 1, 1, 1],
    )
    extent = (plane.x[0], plane.x[-1], plane.y[0], plane.y[-1])
    image: dict[str, Any] = {"origin": "lower", "extent": extent, "interpolation": "nearest"}
    n_experts = gates.shape[1]
    colors = ListedColormap([f"C{e}" for e in range(n_experts)])
    owner = np.where(dense, gates.argmax(1), -1).reshape(shape)
    left = panels["experts"]
    drawn = left.imshow(
        np.ma.masked_less(owner, 0), cmap=colors, norm=Normalize(-0.5, n_experts - 0.5),
        alpha=0.35 + 0.65 * gates.max(1).reshape(shape), **image,
    )  # fmt: skip
    bar = figure.colorbar(drawn, ax=left, location="bottom", ticks=range(n_experts), shrink=0.8)
    bar.set_label("expert with the largest gate; paler where others share in")
    left.set(title=title, xlabel="bohr", ylabel="bohr")
    for q, name in enumerate(QUANTITIES):
        parent, model = (np.where(dense, x[q].numpy(), np.nan) for x in (exact, found))
        difference = model - parent
        bound = float(np.nanpercentile(np.abs(parent), 99))
        off = float(np.nanpercentile(np.abs(difference), 99)) or 1e-12
        norms = [SymLogNorm(bound / 100, vmin=-bound, vmax=bound) for _ in range(2)]
        rows = (("parent", parent), ("model", model), ("model − parent", difference))
        for i, (label, values) in enumerate(rows):
            panel = panels[f"{q}{i}"]
            norm = norms[i] if i < 2 else Normalize(-off, off)
            field = panel.imshow(values.reshape(shape), cmap="RdBu_r", norm=norm, **image)
            end = bound if i < 2 else off
            bar = figure.colorbar(field, ax=panel, shrink=0.8)
            bar.set_ticks([-end, 0, end], labels=[f"{-end:.2g}", "0", f"{end:.2g}"])
            panel.set(title=f"{name}, {label}", xticks=[], yticks=[])
    inside, height = plane.project(images)
    near = (np.abs(height) < ON_PLANE) & (inside >= [extent[0], extent[2]]).all(1)
    near &= (inside <= [extent[1], extent[3]]).all(1)
    for panel in panels.values():
        panel.plot(*inside[near].T, "k+", ms=5)
        panel.set(xlim=extent[:2], ylim=extent[2:])
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a picture whole or not at all; the format is the name's."""
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.removeprefix(".").lower(), dpi=130)
    write_atomic(path, picture.getvalue())
