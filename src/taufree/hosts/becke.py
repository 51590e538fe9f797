"""Periodic Becke grids: which image of an atom a point belongs to, and how weights follow nuclei.

PySCF puts an atomic grid on every image a of every atom, keeps the points that fall into the cell,
and shares space among the images that have some,

    w_j = v_j P_a(r_j) / Σ_b P_b(r_j),   P_b(r) = Π_c s((|r−R_b| − |r−R_c|) / |R_b−R_c|)

with s(μ) = ½(1 − p(p(p(μ)))), p(μ) = (3μ − μ³)/2 (Becke, doi:10.1063/1.454033). A point moves with
its image. A point that crosses a face of the cell comes back on the other side with the same
density and, but for images too far away to have points, the same weight: derivatives at a fixed
list of points are those of the energy between such small steps of it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyscf.dft.gen_grid import libdft
from pyscf.lib import c_null_ptr
from pyscf.pbc.dft.gen_grid import gen_atomic_grids
from pyscf.pbc.gto import eval_gto
from torch import Tensor

from taufree.errors import UnsupportedError
from taufree.hosts.exchange_correlation import periodic_vectors

SHARE = 1e-9
"""Share of a point's weight below which an image has no say in how it changes."""
BLOCK_PAIRS = 2**20
"""Pairs of images, of single points, at a time."""


@dataclass(frozen=True)
class Images:
    """The images of atoms that have points on a grid.

    ``centers`` (n_images, 3), ``atoms`` (n_images,) which atom of the cell each is, ``owners``
    (n_points,) the image that a point moves with.
    """

    centers: np.ndarray
    atoms: np.ndarray
    owners: np.ndarray

    def weight_slopes(self, coords: np.ndarray, weights: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Σ_j v_j ∂w_j/∂R of every image, points moving with theirs, (n_images, 3).

        With shares q_b = P_b/Σ_c P_c, d ln w_j = d ln P_a − Σ_b q_b d ln P_b.
        """
        centers = torch.from_numpy(self.centers).requires_grad_()
        slopes = np.zeros_like(self.centers)
        block = max(1, BLOCK_PAIRS // (8 * len(centers)))  # about 8 images share a point
        for start in range(0, len(weights), block):
            part = slice(start, start + block)
            owners, points = self.owners[part], np.arange(len(self.owners[part]))
            factors = -_shares(self.centers, coords[part])
            image, point = (factors < -SHARE).nonzero()
            factors[owners, points] += 1
            scale = torch.from_numpy((factors * (weights * v)[part])[image, point])
            r = torch.from_numpy(coords[part] - self.centers[owners]) + centers[owners]
            logarithms = _log_cell_functions(centers, r, torch.from_numpy(image), point)
            slopes += torch.autograd.grad(scale @ logarithms, centers)[0].numpy()
        return slopes


def images(cell: Any, grids: Any) -> Images:
    """Which atom's image each point of a periodic Becke grid belongs to.

    Raises
    ------
    UnsupportedError
        The grid is not what PySCF builds for this cell.
    """
    tables = gen_atomic_grids(cell, grids.atom_grid, grids.radi_method, grids.level, grids.prune)
    found = list(_inside(cell, tables))
    counts = [len(points) for *_, points in found]
    if not np.array_equal(np.concatenate([p for *_, p in found]), grids.coords):
        raise UnsupportedError(
            "grid_response needs the points that BeckeGrids builds for this cell: leave out "
            "grid_response, or the changes to the grid."
        )
    centers, atoms = (np.array([line[i] for line in found]) for i in range(2))
    return Images(centers, atoms, np.repeat(np.arange(len(found)), counts))


def _inside(cell: Any, tables: dict[str, Any]) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """Center, atom and points in the cell, of every image, as `get_becke_grids` of PySCF."""
    periodic = periodic_vectors(cell)
    n_periodic = 0 if periodic is None else len(periodic)
    inverse = cell.reciprocal_vectors(norm_to=1)
    radius = eval_gto._estimate_rcut(cell).max()
    for vector in eval_gto.get_lattice_Ls(cell, rcut=radius):
        for atom, position in enumerate(vector + cell.atom_coords()):
            points = tables[cell.atom_symbol(atom)][0] + position
            fractions = inverse.dot(points.T)[:n_periodic]
            points = points[((fractions > -0.5 - 1e-15) & (fractions < 0.5 + 1e-15)).all(0)]
            if len(points) > 8:
                yield position, atom, points


def _shares(centers: np.ndarray, coords: np.ndarray) -> np.ndarray:
    """P_b/Σ_c P_c, (n_images, n_points), from PySCF."""
    shares = np.empty((len(centers), len(coords)))
    centers, coords = np.ascontiguousarray(centers), np.asfortranarray(coords)
    pointers = [x.ctypes.data_as(ctypes.c_void_p) for x in (shares, coords, centers)]
    sizes = map(ctypes.c_int, shares.shape)
    libdft.VXCgen_grid(*pointers, c_null_ptr(), *sizes)
    found: np.ndarray = shares / shares.sum(0)
    return found


def _log_cell_functions(centers: Tensor, r: Tensor, image: Tensor, point: np.ndarray) -> Tensor:
    """ln P of pairs of an image and a point, (n_pairs,)."""
    distances = (r[:, None] - centers).norm(dim=2)
    itself = torch.eye(len(centers), dtype=torch.bool)
    apart = (centers[:, None] - centers).norm(dim=2).masked_fill(itself, torch.inf)
    mu = (distances[point, image][:, None] - distances[point]) / apart[image]
    for _ in range(3):
        mu = (3 - mu * mu) * mu / 2
    return torch.log((1 - mu) / 2).sum(1)
