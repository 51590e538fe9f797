"""Crystals at two volumes: the error of an energy-volume curve's slope, to train against.

An error ΔE_x that is the same at all volumes moves no minimum of the curve. What moves it is

    (ΔE_x(V₂) − ΔE_x(V₁)) / (ln V₂ − ln V₁),

the pressure that the surrogate adds, times −V; the equilibrium volume changes by a share of that
over B V. A draw of grid points is far too noisy for it: the sums run over whole grids.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from taufree.data.reparent import with_parent
from taufree.data.splits import Split
from taufree.data.store import Entry, entries_of, load_record
from taufree.functional import Functional, Geometry
from taufree.model.config import ModelConfig
from taufree.model.network import Network
from taufree.quantities import GridDensity


@dataclass(frozen=True)
class Crystal:
    """The parent's converged density of one crystal on one grid, and the parent's E_x of it."""

    density: GridDensity
    geometry: Geometry
    e_x: float

    @property
    def volume(self) -> float:
        """Of the cell, bohr³."""
        assert self.density.lattice is not None
        return torch.linalg.det(self.density.lattice).abs().item()


class Curves:
    """Crystals of a split at several volumes, on one grid level; prepared when first drawn."""

    def __init__(
        self,
        folder: Path,
        split: Split,
        level: int,
        config: ModelConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        self.folder, self.level = folder, level
        self.functional = Functional(Network(config)).to(device)  # for its neighbour lists
        curves = defaultdict[str, list[Entry]](list)
        for entry in entries_of(folder, split):
            if entry.kind == "crystals":
                curves[entry.name.partition("@")[0]].append(entry)
        self.entries = [curve for curve in curves.values() if len(curve) > 1]
        self._known: dict[str, Crystal] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, which: int) -> list[Crystal]:
        """One crystal at all its volumes, the smallest first."""
        crystals = [self._crystal(entry) for entry in self.entries[which]]
        return sorted(crystals, key=lambda crystal: crystal.volume)

    def _crystal(self, entry: Entry) -> Crystal:
        if entry.name not in self._known:
            path = self.folder / entry.file
            (record,) = load_record(path, [self.level], ["converged"], entry.sha256)
            e_x = with_parent(record, self.functional.parent.xc).e_x.item()
            d = record.density.to(self.functional.device)
            geometry = self.functional.geometry(d.coords, d.centers, d.lattice)
            self._known[entry.name] = Crystal(d, geometry, e_x)
        return self._known[entry.name]


def slope_error(network: Network, one: Crystal, other: Crystal) -> Tensor:
    """The slope above (Ha) per atom, differentiable by the parameters."""
    change = energy_error(network, other) - energy_error(network, one)
    n_atoms = len(one.density.centers)
    return change / math.log(other.volume / one.volume) / n_atoms


def energy_error(network: Network, crystal: Crystal) -> Tensor:
    """ΔE_x (Ha) of a cell."""
    functional, d = Functional(network), crystal.density
    channels = [
        d.weights @ functional.energy_density(rho, grad_rho, d.weights, crystal.geometry)
        for rho, grad_rho in d.unpolarized
    ]
    return torch.stack(channels).mean() - crystal.e_x
