"""A plane through a structure: which expert owns each point, and how its exchange compares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize, SymLogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pyscf.dft import numint
from pyscf.pbc.dft import numint as pbc_numint
from pyscf.pbc.gto import Cell
from torch import Tensor

from taufree.errors import UserError
from taufree.functional import Functional, hold
from taufree.hosts.domain import warn_unseen
from taufree.hosts.exchange_correlation import nuclei, periodic_vectors
from taufree.hosts.single_point import Settings, mean_field
from taufree.hosts.structures import read_structure
from taufree.model.storage import load_model
from taufree.physics.descriptors import contracted_gradient, kinetic_energy_density
from taufree.physics.parents import partial_derivatives
from taufree.quantities import GridDensity

Array = NDArray[np.float64]

MARGIN = 3.5  # bohr beyond the outermost atoms of a molecule
CRYSTAL_EXTENT = 1.5  # times the distance of the second neighbour that spans the plane
ON_PLANE = 0.3  # bohr: nuclei closer to it are marked
SHOWN_ABOVE = 1e-4  # bohr⁻³: where there is less density, derivatives are not drawn
BLOCK = 20_000  # grid points whose AO values are held at once
QUANTITIES = ("e_x", "v_ρ", "v_σ", "v_τ")
CAPTION = (
    "v_ρ, v_σ, v_τ are the partial derivatives of e_x by ρ, σ and τ, the model's at frozen τ̃: "
    "parts of the potential, not the Kohn–Sham potential"
)
WIDE = 0.6  # height over width of a plane below which the experts have a row of their own
PANEL = 2.3  # inch


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
    warn_unseen(functional, mf.mol)
    mf.xc = functional.parent.xc
    mf.kernel()
    if not mf.converged:
        raise UserError(
            f"the parent did not converge for {path}: check --charge and --spin, and add "
            "--smearing 0.1 for a metal."
        )
    positions = nuclei(mf.mol)
    lattice = periodic_vectors(mf.mol) if isinstance(mf.mol, Cell) else None
    if lattice is None:
        plane, images = principal_plane(positions, n_points), positions
    else:
        if len(lattice) != 3:
            raise UserError(f"{path} is periodic in {len(lattice)} directions: give 0 or 3.")
        plane, images = bond_plane(positions, lattice, n_points)
    maps = look(functional, mf, plane)
    differences = {
        name: float(np.abs((a - b)[maps.dense]).mean())
        for name, a, b in zip(QUANTITIES, maps.model, maps.parent, strict=True)
    }
    result = {
        "structure": path.name,
        "model": functional.name,
        "parent": functional.parent.xc,
        "electron_share": maps.electron_share.tolist(),
        "mean_absolute_difference": differences,
    }
    return result, _figure(plane, images, maps, path.name)


@dataclass(frozen=True)
class Maps:
    """What is drawn, at each of a plane's n points; parent and model hold ``QUANTITIES``, (4, n).

    ``gates`` (n, n_experts); ``dense`` where there is density enough; ``electron_share`` of each
    expert, over all of space.
    """

    gates: Array
    parent: Array
    model: Array
    dense: NDArray[np.bool_]
    electron_share: Array


def look(functional: Functional, mf: Any, plane: Plane) -> Maps:
    """A model (float64) and its parent on a plane of a converged PySCF object's density."""
    grids = mf.grids
    if grids.coords is None:
        grids.build()
    n = len(plane.coords)
    coords = np.vstack([grids.coords, plane.coords])
    fields = fields_at(mf, coords)  # (n_spin, 5, n): ρ, ∇ρ, τ
    lattice = periodic_vectors(mf.mol) if isinstance(mf.mol, Cell) else None
    density = GridDensity(
        coords=torch.from_numpy(coords),
        weights=torch.from_numpy(np.append(grids.weights, np.zeros(n))),
        rho=fields[:, 0],
        grad_rho=fields[:, 1:4].mT.contiguous(),
        centers=torch.from_numpy(nuclei(mf.mol)),
        lattice=None if lattice is None else torch.from_numpy(lattice),
    )
    geometry = functional.geometry(density.coords, density.centers, density.lattice)
    rho, grad_rho = next(iter(density.unpolarized))
    part = functional.potential(rho, grad_rho, density.weights, geometry)
    electrons = density.weights * rho
    shown, sigma, _ = hold(rho[-n:], contracted_gradient(grad_rho[-n:]))
    taus = density.n_spin * fields[0, 4, -n:], kinetic_energy_density(shown, sigma, part.alpha[-n:])
    parent, model = (
        torch.stack(partial_derivatives(functional.parent, shown, sigma, tau)).numpy()
        for tau in taus
    )
    return Maps(
        gates=part.gates[-n:].numpy(),
        parent=parent,
        model=model,
        dense=(rho[-n:] > SHOWN_ABOVE).numpy(),
        electron_share=((electrons @ part.gates.double()) / electrons.sum()).numpy(),
    )


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


def _figure(plane: Plane, images: Array, maps: Maps, title: str) -> Figure:
    shape = len(plane.y), len(plane.x)
    extent = (plane.x[0], plane.x[-1], plane.y[0], plane.y[-1])
    figure, experts, others = _panels((extent[3] - extent[2]) / (extent[1] - extent[0]))
    image: dict[str, Any] = {"origin": "lower", "extent": extent, "interpolation": "nearest"}
    n_experts = maps.gates.shape[1]
    colors = ListedColormap([f"C{e}" for e in range(n_experts)])
    owner = np.where(maps.dense, maps.gates.argmax(1), -1).reshape(shape)
    drawn = experts.imshow(
        np.ma.masked_less(owner, 0), cmap=colors, norm=Normalize(-0.5, n_experts - 0.5),
        alpha=0.35 + 0.65 * maps.gates.max(1).clip(0, 1).reshape(shape), **image,  # but rounding
    )  # fmt: skip
    bar = figure.colorbar(
        drawn,
        ax=experts,
        location="bottom",
        ticks=range(n_experts),
        shrink=0.8,
        aspect=40,
        pad=0.02,
    )
    bar.set_label("expert with the largest gate; paler where others share in")
    experts.set(title=title, xlabel="bohr", ylabel="bohr")
    for q, name in enumerate(QUANTITIES):
        parent, model = (np.where(maps.dense, x[q], np.nan) for x in (maps.parent, maps.model))
        difference = model - parent
        bound = float(np.nanpercentile(np.abs(parent), 99)) or 1e-12
        off = float(np.nanpercentile(np.abs(difference), 99)) or 1e-12
        norms = [SymLogNorm(bound / 100, vmin=-bound, vmax=bound) for _ in range(2)]
        rows = (("parent", parent), ("model", model), ("model − parent", difference))
        for i, (label, values) in enumerate(rows):
            panel = others[q, i]
            norm = norms[i] if i < 2 else Normalize(-off, off)
            field = panel.imshow(values.reshape(shape), cmap="RdBu_r", norm=norm, **image)
            end = bound if i < 2 else off
            bar = figure.colorbar(field, ax=panel, pad=0.02)
            bar.set_ticks([-end, 0, end], labels=[f"{-end:.2g}", "0", f"{end:.2g}"])
            bar.ax.tick_params(labelsize="small")
            panel.set(xticks=[], yticks=[])
            panel.set_title(f"{name}, {label}", fontsize="medium")
    inside, height = plane.project(images)
    near = (np.abs(height) < ON_PLANE) & (inside >= [extent[0], extent[2]]).all(1)
    near &= (inside <= [extent[1], extent[3]]).all(1)
    for panel in (experts, *others.flat):
        panel.plot(*inside[near].T, "k+", ms=5)
        panel.set(xlim=extent[:2], ylim=extent[2:])
    return figure


def _panels(aspect: float) -> tuple[Figure, Axes, NDArray[Any]]:
    """Panels for planes of one height over width: the experts beside (4, 3) others or above."""
    n = len(QUANTITIES)
    width, height = n * (PANEL + 0.7), 3 * (aspect * PANEL + 0.35) + 0.35  # bars, titles, caption
    if aspect < WIDE:
        above = 0.8 * width * aspect + 1.4
        figure = Figure(figsize=(width, above + height), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=[above, height])
    else:
        beside = (height - 1.4) / aspect + 0.8
        figure = Figure(figsize=(beside + width, height), layout="constrained")
        parts = figure.subfigures(1, 2, width_ratios=[beside, width])
    first, rest = parts
    rest.supxlabel(CAPTION, fontsize="small")
    return figure, first.subplots(), rest.subplots(3, n).T
