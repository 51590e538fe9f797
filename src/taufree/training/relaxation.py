"""How far an error of the potential lets a self-consistent calculation sink, to train against.

A Fock matrix that is off by ΔF between the parent's occupied (i) and empty (a) orbitals turns them
until the energy lies below that of the parent's density by, to second order,

    E_relax = Σ_σ Σ_ai |ΔF_ai|² / (ε_a − ε_i),

    ΔF_ai = ∫ [v φ_a φ_i + g · ∇(φ_a φ_i)]
            − ∫ [∂e/∂ρ φ_a φ_i + 2 ∂e/∂σ ∇ρ · ∇(φ_a φ_i) + ½ ∂e/∂τ ∇φ_a · ∇φ_i],

where v and g are the surrogate's derivatives by ρ and ∇ρ, through attention, and the others are the
parent's partial ones at the orbitals' τ. The integrals run over a whole grid: no noise of a draw.
ΔE_x − E_relax, with ΔE_x that at the parent's density, is the error of the self-consistent energy,
to some tenth of E_relax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from pyscf import dft
from torch import Tensor

from taufree.data.generate import mean_field
from taufree.data.orbitals import SMALLEST_GAP
from taufree.data.reparent import with_parent
from taufree.data.splits import Split
from taufree.data.store import entries_of, load_orbitals, load_record
from taufree.data.systems import System, registry
from taufree.errors import UserError
from taufree.functional import Functional, hold, leaf
from taufree.model.network import Network
from taufree.physics.descriptors import contracted_gradient
from taufree.physics.parents import PARENTS, Parent, partial_derivatives
from taufree.quantities import GridDensity

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Orbitals:
    """Of one spin channel, orthonormal, each set diagonal in h + J + V_x; float64."""

    occupied: Tensor  # (n_ao, n_occupied)
    empty: Tensor  # (n_ao, n_empty)
    gap: Tensor  # ε_a − ε_i, (n_empty, n_occupied)
    target: Tensor  # the parent's ∫ [...] above, (n_empty, n_occupied)


@dataclass(frozen=True)
class Molecule:
    """The parent's converged density on one grid; None stands for a channel with nothing to mix."""

    system: System
    density: GridDensity
    e_x: float  # the parent's
    channels: list[Orbitals | None]


class Molecules:
    """Molecules of a split on one grid level, to be drawn whole; read when first drawn.

    Raises
    ------
    UserError
        If there is none of at most ``most_atoms``.
    """

    def __init__(
        self, folder: Path, split: Split, level: int, parent: str, most_atoms: float = math.inf
    ) -> None:
        self.folder, self.level, self.parent = folder, level, PARENTS[parent]
        self.entries = [
            entry
            for entry in entries_of(folder, split)
            if not (system := registry()[entry.name]).period and len(system.symbols) <= most_atoms
        ]
        if not self.entries:
            raise UserError(f"{folder} holds no such {split} molecules; run `taufree data build`.")
        self.kinds = [entry.kind for entry in self.entries]
        self._known: dict[int, Molecule] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, which: int) -> Molecule:
        if which not in self._known:
            entry = self.entries[which]
            system, path = registry()[entry.name], self.folder / entry.file
            (record,) = load_record(path, [self.level], ["converged"], entry.sha256)
            factor = load_orbitals(path, "converged")
            channels = orbitals_of(system, record.density, record.tau, factor, self.parent)
            e_x = with_parent(record, self.parent.xc).e_x.item()
            self._known[which] = Molecule(system, record.density, e_x, channels)
        return self._known[which]


def orbitals_of(
    system: System, density: GridDensity, tau: Tensor, factor: Array, parent: Parent
) -> list[Orbitals | None]:
    """Orbitals of every spin channel from L of its density matrix, and the parent's matrix.

    ``factor`` as in `taufree.data.orbitals.factor`. Correlation is left out of the orbital
    energies: it changes gaps little.
    """
    mf = mean_field(system)
    channels = factor.reshape(-1, *factor.shape[-2:])
    overlap = mf.get_ovlp()
    dm = np.einsum("spi,sqi->pq", channels, channels)
    common = mf.get_hcore() + mf.with_df.get_jk(dm, with_k=False)[0]
    chi = atomic_orbitals(system, density)
    eye = torch.eye(len(overlap), dtype=torch.float64)
    found: list[Orbitals | None] = []
    for (rho, grad_rho), t, columns in zip(density.unpolarized, tau, channels, strict=True):
        n, g, held = hold(rho, grad_rho)
        _, vrho, vsigma, vtau = partial_derivatives(
            parent, n, contracted_gradient(g), density.n_spin * t
        )
        w = density.weights * held
        exchange = between(chi, w * vrho, (2 * w * vsigma)[:, None] * g, eye, eye)
        exchange += sum(x.T @ ((w * vtau / 2)[:, None] * x) for x in chi[1:])
        occupied, empty = _spaces(columns[:, np.any(columns, axis=0)], overlap)
        if not occupied.size or not empty.size:
            found.append(None)
            continue
        fock = common + exchange.numpy()
        (below, occupied), (above, empty) = (_diagonal(x, fock) for x in (occupied, empty))
        gap = np.maximum(above[:, None] - below, SMALLEST_GAP)
        target = empty.T @ exchange.numpy() @ occupied
        found.append(Orbitals(*map(torch.from_numpy, (occupied, empty, gap, target))))
    return found


def _spaces(columns: Array, overlap: Array) -> tuple[Array, Array]:
    """Orthonormal orbitals that span ``columns`` and what is left of the basis."""
    root = scipy.linalg.sqrtm(overlap).real
    occupied = scipy.linalg.orth(root @ columns)
    empty = scipy.linalg.null_space(occupied.T) if occupied.size else np.eye(len(root))
    return np.linalg.solve(root, occupied), np.linalg.solve(root, empty)


def _diagonal(orbitals: Array, fock: Array) -> tuple[Array, Array]:
    energies, turn = np.linalg.eigh(orbitals.T @ fock @ orbitals)
    return energies, orbitals @ turn


def atomic_orbitals(system: System, density: GridDensity) -> Tensor:
    """χ and ∇χ on the grid, (4, n_points, n_ao)."""
    mol = mean_field(system).mol
    return torch.from_numpy(dft.numint.eval_ao(mol, density.coords.numpy(), deriv=1))


def between(chi: Tensor, v: Tensor, g: Tensor, occupied: Tensor, empty: Tensor) -> Tensor:
    """Σ_j [v φ_a φ_i + g · ∇(φ_a φ_i)], (n_empty, n_occupied), with weights in v and g."""
    phi = chi @ occupied  # (4, n_points, n_occupied)
    total = chi[0].T @ (v[:, None] * phi[0] + (g.T[..., None] * phi[1:]).sum(0))
    for x, component in zip(chi[1:], g.T, strict=True):
        total = total + x.T @ (component[:, None] * phi[0])
    return empty.T @ total


def energy_errors(
    network: Network, molecule: Molecule, *, create_graph: bool
) -> tuple[Tensor, Tensor]:
    """ΔE_x and E_relax of a molecule (Ha), differentiable by the network's parameters."""
    density = molecule.density.to(next(network.parameters()).device)
    functional, weights = Functional(network), density.weights
    geometry = functional.geometry(density.coords, density.centers)
    chi = atomic_orbitals(molecule.system, molecule.density).to(weights.device)
    e_x, relaxation = weights.new_zeros(()), weights.new_zeros(())
    for (rho, grad_rho), orbitals in zip(density.unpolarized, molecule.channels, strict=True):
        n, g = leaf(rho), leaf(grad_rho)
        with torch.enable_grad():
            energy = weights @ functional.energy_density(n, g, weights, geometry)
        e_x = e_x + (energy if create_graph else energy.detach()) / density.n_spin
        if orbitals is None:
            continue
        vrho, vgrad = torch.autograd.grad(energy, (n, g), create_graph=create_graph)
        spaces = orbitals.occupied, orbitals.empty, orbitals.gap, orbitals.target
        occupied, empty, gap, target = (x.to(weights.device) for x in spaces)
        error = between(chi, vrho, vgrad, occupied, empty) - target
        relaxation = relaxation + 2 / density.n_spin * (error.square() / gap).sum()
    return e_x - molecule.e_x, relaxation
