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
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from dask.system import CPU_COUNT
from distributed import as_completed
from numpy.typing import NDArray
from pyscf import dft
from torch import Tensor

from taufree.data.build import dask_client
from taufree.data.generate import mean_field
from taufree.data.orbitals import SMALLEST_GAP
from taufree.data.reparent import with_parent
from taufree.data.splits import Split
from taufree.data.store import Entry, entries_of, load_orbitals, load_record
from taufree.data.systems import System, registry
from taufree.errors import UserError
from taufree.functional import Functional, hold
from taufree.model.network import Network
from taufree.physics.descriptors import contracted_gradient
from taufree.physics.parents import PARENTS, Parent, partial_derivatives
from taufree.quantities import GridDensity
from taufree.training.potential import energy_and_potential

Array = NDArray[np.float64]


APART = 500.0
"""Distance (bohr) between densities that are evaluated as one: they do not see each other."""
A_PROCESS = 8
"""Molecules that are worth a process of their own to prepare them."""


@dataclass(frozen=True)
class Orbitals:
    """Of one spin channel, orthonormal, each set diagonal in h + J + V_x; float64."""

    occupied: Tensor  # (n_ao, n_occupied)
    empty: Tensor  # (n_ao, n_empty)
    gap: Tensor  # ε_a − ε_i, (n_empty, n_occupied)
    target: Tensor  # the parent's ∫ [...] above, (n_empty, n_occupied)

    def to(self, device: torch.device) -> Orbitals:
        """The same on ``device``."""
        return Orbitals(*(x.to(device) for x in vars(self).values()))


@dataclass(frozen=True)
class Molecule:
    """The parent's converged density on one grid; None stands for a channel with nothing to mix.

    ``chi`` is what `atomic_orbitals` gives, in float32; None: to be evaluated when needed.
    """

    system: System
    density: GridDensity
    e_x: float  # the parent's
    channels: list[Orbitals | None]
    chi: Tensor | None = None

    def on(self, device: torch.device) -> Molecule:
        """The same on a GPU, where atomic orbitals are kept: it would wait for them every time."""
        return replace(
            self,
            density=self.density.to(device),
            channels=[o and o.to(device) for o in self.channels],
            chi=atomic_orbitals(self.system, self.density).float().to(device),
        )

    @property
    def atomic_orbitals(self) -> Tensor:
        """χ and ∇χ on the grid, (4, n_points, n_ao), float64."""
        kept = self.chi
        return atomic_orbitals(self.system, self.density) if kept is None else kept.double()


class Molecules:
    """Molecules of a split on one grid level, to be drawn whole.

    They are prepared when first drawn, or all at once by `prepare`.

    Raises
    ------
    UserError
        If there is none of ``kinds`` of at most ``most_atoms``, or one that is not in the registry.
    """

    def __init__(
        self,
        folder: Path,
        split: Split,
        level: int,
        parent: str,
        most_atoms: float = math.inf,
        kinds: Collection[str] | None = None,
    ) -> None:
        self.folder, self.level, self.parent = folder, level, parent
        self.device = torch.device("cpu")
        entries, systems = entries_of(folder, split, kinds), registry()
        if unknown := [entry.name for entry in entries if entry.name not in systems]:
            raise UserError(
                f"{folder} holds {unknown[0]}, which this version of taufree does not know: "
                "use the version that built it, or build another folder."
            )
        self.entries = [
            entry
            for entry in entries
            if not (system := systems[entry.name]).period and len(system.symbols) <= most_atoms
        ]
        if not self.entries:
            raise UserError(f"{folder} holds no such {split} molecules; run `taufree data build`.")
        self.kinds = [entry.kind for entry in self.entries]
        self._known: dict[int, Molecule] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, which: int) -> Molecule:
        if which not in self._known:
            self._keep(which, _molecule(self.folder, self.entries[which], self.level, self.parent))
        return self._known[which]

    def prepare(self, device: torch.device) -> None:
        """Prepare all of them for ``device``, several at once where they are many."""
        self.device = device
        processes = min(CPU_COUNT, len(self) // A_PROCESS)
        if processes < 2:
            return
        with dask_client(None, processes) as client:
            tasks = {
                client.submit(_molecule, self.folder, entry, self.level, self.parent): which
                for which, entry in enumerate(self.entries)
            }
            for future, molecule in as_completed(tasks, with_results=True):
                self._keep(tasks[future], molecule)
                future.release()

    def _keep(self, which: int, molecule: Molecule) -> None:
        on_cpu = self.device.type == "cpu"
        self._known[which] = molecule if on_cpu else molecule.on(self.device)


def _molecule(folder: Path, entry: Entry, level: int, parent: str) -> Molecule:
    system, path = registry()[entry.name], folder / entry.file
    (record,) = load_record(path, [level], ["converged"], entry.sha256)
    factor = load_orbitals(path, "converged")
    form = PARENTS[parent]
    channels = orbitals_of(system, record.density, record.tau, factor, form)
    e_x = with_parent(record, form.xc).e_x.item()
    return Molecule(system, record.density, e_x, channels)


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
    network: Network, molecules: Sequence[Molecule], *, create_graph: bool
) -> tuple[Tensor, Tensor]:
    """ΔE_x and E_relax of molecules (Ha), (n_molecules,), differentiable by the parameters.

    All spin channels of all of them are evaluated as one density, far apart.
    """
    functional = Functional(network)
    channels = [
        (which, *fields, orbitals)
        for which, m in enumerate(molecules)
        for fields, orbitals in zip(m.density.unpolarized, m.channels, strict=True)
    ]
    densities = [molecules[which].density for which, *_ in channels]
    apart = [APART * k for k in range(len(channels))]
    coords = torch.cat([d.coords + z for d, z in zip(densities, apart, strict=True)])
    centers = torch.cat([d.centers + z for d, z in zip(densities, apart, strict=True)])
    weights = torch.cat([d.weights for d in densities])
    n, g = (torch.cat(fields) for fields in list(zip(*channels, strict=True))[1:3])
    geometry = functional.geometry(coords, centers)
    if create_graph:
        energy, *potential = energy_and_potential(functional, n, g, weights, geometry)
    else:
        found = functional.potential(n, g, weights, geometry)
        energy, potential = weights * found.exc, [found.vrho, found.vgrad]
    e_x = [-weights.new_tensor(m.e_x) for m in molecules]
    relaxation = [weights.new_zeros(()) for _ in molecules]
    sizes = [len(d.weights) for d in densities]
    parts = (x.split(sizes) for x in (energy, *potential))
    chi = [m.atomic_orbitals for m in molecules]
    for (which, *_, orbitals), e, vrho, vgrad in zip(channels, *parts, strict=True):
        n_spin = molecules[which].density.n_spin
        e_x[which] = e_x[which] + e.sum() / n_spin
        if orbitals is not None:
            fock = between(chi[which], vrho, vgrad, orbitals.occupied, orbitals.empty)
            size = ((fock - orbitals.target).square() / orbitals.gap).sum()
            relaxation[which] = relaxation[which] + 2 / n_spin * size
    return torch.stack(e_x), torch.stack(relaxation)
