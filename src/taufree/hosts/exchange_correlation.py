"""E_xc of densities on one grid: the surrogate's exchange, and the parent's own correlation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyscf.dft import libxc, numint
from torch import Tensor

from taufree.functional import RHO_THRESHOLD, Functional, Geometry, Potential, hold
from taufree.motion import motion
from taufree.physics.descriptors import contracted_gradient
from taufree.physics.parents import partial_derivatives

NEAR = 1e-3
"""Change of E_xc between calls (Ha) below which an SCF is near its end, its total energy about 1e-6
Ha from the last: the rounding of float32, some 1e-8 Ha, begins to count."""
PRECISE_BELOW = 1e-7
"""The same from which on the network runs in float64: PySCF's default ``conv_tol`` ends before."""

POINT_THRESHOLD = 1e-11
"""w ρ^(4/3) (Ha) of a point, about its LDA exchange, below which its exchange is left out: a point
close to a nucleus or far out, and all of them together less than 1e-8 Ha of a small molecule."""
MARGIN = 10
"""Points by this factor below a threshold are evaluated too, so that the same serve all cycles."""


@dataclass(frozen=True)
class _Call:
    """E_xc as computed and as told to the SCF; ρ, ∇ρ and derivatives at all points."""

    computed: float
    told: float
    rho: np.ndarray
    derivative: np.ndarray


class ExchangeCorrelation:
    """E_xc and its derivatives on one grid; keeps neighbour lists, and the precision, for an SCF.

    Parameters
    ----------
    functional : Functional
    coords, weights : (n_points, 3), (n_points,)
    centers : (n_centers, 3)
        See `nuclei`.
    lattice : (n_periodic, 3), optional
        The cell vectors along which the system repeats.
    """

    def __init__(
        self,
        functional: Functional,
        coords: np.ndarray,
        weights: np.ndarray,
        centers: np.ndarray,
        lattice: np.ndarray | None = None,
    ) -> None:
        self.functional = functional
        self.coords, self.weights = coords, weights
        self.centers, self.lattice = centers, lattice
        self._geometry: tuple[Tensor, Geometry] | None = None
        self._last_energy = np.inf
        self._last: _Call | None = None
        self._single = functional.dtype == torch.float32

    def __call__(self, rho: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """e_xc, energy per volume, and the derivatives of E_xc with respect to ρ and ∇ρ.

        E_xc = Σ_j w_j e_xc(r_j) with e_xc (n_points,); ``rho`` and the derivatives, weights
        included, are (n_spin, 4, n_points). Exchange by spin scaling: half the unpolarized energy
        of twice each spin density.
        """
        exc, derivative, points, _, parts = self._evaluate(rho, self.functional)
        for s, part in enumerate(parts):
            exc[points] += part.exc.cpu().numpy() / len(rho)
            _add_values(derivative[s], part, points)
        return exc, derivative

    def partials(self, rho: np.ndarray) -> Partials:
        """What E_xc of one density depends on, in float64: for forces and stress."""
        correlation, derivative, points, geometry, parts = self._evaluate(
            rho, self.functional.double()
        )
        n_spin, centers, lattice = len(rho), *self._cell()
        moved = np.zeros_like(self.coords), np.zeros_like(self.centers), np.zeros((3, 3))
        for s, part in enumerate(parts):
            _add_values(derivative[s], part, points)
            correlation[points] += part.vweight.cpu().numpy() / n_spin
            there = motion(part, geometry, centers, lattice)
            moved[0][points] += there.points.cpu().numpy() / n_spin
            moved[1][:] += there.centers.cpu().numpy() / n_spin
            moved[2][:] += there.strain.cpu().numpy() / n_spin
        return Partials(derivative, correlation, *moved)

    def _evaluate(
        self, rho: np.ndarray, functional: Functional
    ) -> tuple[np.ndarray, np.ndarray, Tensor, Geometry, Iterator[Potential]]:
        """E_c per volume and its derivatives, then the points where there is exchange.

        The last two are their geometry, and of each spin the unpolarized functional of twice its
        density, which carries what the correlation takes from τ̃ too.
        """
        points, geometry, w, channels = self.on_points(rho, functional)
        tau = np.zeros_like(rho[:, :1])  # τ̃ of a spin is that of twice its density, halved
        if functional.parent.correlation_needs_tau:
            for s, channel in enumerate(channels):
                tau[s, 0, points] = functional.tau(*channel, w, geometry).cpu() / len(rho)
        correlation, vxc = self._correlation(rho, tau, points)
        vtau = torch.from_numpy(vxc[:, 4:])[..., points].to(functional.device)
        parts = (
            functional.potential(*c, w, geometry, *v) for c, v in zip(channels, vtau, strict=True)
        )
        return correlation, vxc[:, :4], points, geometry, parts

    def on_points(
        self, rho: np.ndarray, functional: Functional
    ) -> tuple[Tensor, Geometry, Tensor, list[tuple[Tensor, Tensor]]]:
        """Points with exchange, their geometry and weights, and n_spin ρσ, n_spin ∇ρσ there."""
        density, device = torch.from_numpy(len(rho) * rho), functional.device
        points, geometry = self.geometry(density[:, 0])
        w = torch.from_numpy(self.weights)[points].to(device)
        channels = [(d[0, points].to(device), d[1:, points].T.to(device)) for d in density]
        return points, geometry, w, channels

    def _correlation(
        self, rho: np.ndarray, tau: np.ndarray, points: Tensor
    ) -> tuple[np.ndarray, np.ndarray]:
        """E_c per volume; its derivatives by ρ, ∇ρ and, if it depends on it, τ, with weights."""
        parent, seen = self.functional.parent, np.ones(1)
        if parent.correlation_needs_tau:
            seen = self._seen(len(rho) * rho[:, :1], points)
            rho = seen * np.concatenate([rho, tau], 1)
        exc, vxc = libxc_eff(parent.correlation, rho)
        return rho[:, 0].sum(0) * exc, vxc * seen * self.weights

    def geometry(self, rho: Tensor) -> tuple[Tensor, Geometry]:
        """Points that carry density, and their geometry; rho (n_spin, n_points)."""
        density = rho.amax(0).clamp_min(0.0)
        exchange = torch.from_numpy(np.abs(self.weights)) * density ** (4 / 3)
        if self._geometry is not None:
            left_out = (density > RHO_THRESHOLD) & (exchange > POINT_THRESHOLD)
            left_out[self._geometry[0]] = False
            if left_out.any():
                self._geometry = None
        if self._geometry is None:
            held = density > RHO_THRESHOLD / MARGIN
            points = (held & (exchange > POINT_THRESHOLD / MARGIN)).nonzero().squeeze(1)
            device = self.functional.device
            coords = torch.from_numpy(self.coords)[points].to(device)
            self._geometry = points, self.functional.geometry(coords, *self._cell())
        return self._geometry

    @staticmethod
    def _seen(density: np.ndarray, points: Tensor) -> np.ndarray:
        """Where there is a τ̃, and so a correlation that depends on it."""
        evaluated = np.zeros(density.shape[-1], bool)
        evaluated[points.numpy()] = True
        return evaluated & (density > RHO_THRESHOLD)

    def _cell(self) -> tuple[Tensor, Tensor | None]:
        device, lattice = self.functional.device, self.lattice
        centers = torch.from_numpy(self.centers).to(device)
        return centers, None if lattice is None else torch.from_numpy(lattice).to(device)

    def energy(self, exc: np.ndarray, rho: np.ndarray, derivative: np.ndarray) -> float:
        """E_xc of a density from what calling its object returned, free of noise near an end.

        The difference of two energies in float32 is noise as soon as the densities are close. From
        the derivatives it is not: E' − E = ½ Σ (∂E'/∂ρ + ∂E/∂ρ)(ρ' − ρ), to third order in ρ' − ρ.
        """
        computed = told = float((exc * self.weights).sum())
        if self._single:
            last = self._last
            if last is not None and abs(computed - last.computed) < NEAR:
                told = last.told + 0.5 * ((derivative + last.derivative) * (rho - last.rho)).sum()
            self._last = _Call(computed, told, rho.copy(), derivative)
            self.refine(told, PRECISE_BELOW)
        return told

    def refine(self, energy: float, below: float = NEAR) -> None:
        """Go over to float64 when E_xc changes by less than ``below`` (Ha) from call to call."""
        near = 0 < abs(energy - self._last_energy) < below  # not the same density again
        if near and self.functional.dtype != torch.float64:
            self.functional = self.functional.double()
        self._last_energy = energy


class FrozenTau(ExchangeCorrelation):
    """E_xc, and in place of its derivatives the parent's own partial ones at the model's τ̃.

    ∂e/∂ρ, ∂e/∂∇ρ and ∂e/∂τ at (ρ, ∇ρ, τ̃), as if τ̃ were the orbitals' τ and applied as any
    meta-GGA's: without a backward pass, with a potential that is the parent's where τ̃ is exact,
    and not the derivative of the energy.
    """

    def __call__(self, rho: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """e_xc, (n_points,), and partial derivatives by ρ, ∇ρ and τ, (n_spin, 5, n_points)."""
        n_spin, functional = len(rho), self.functional
        points, geometry, w, channels = self.on_points(rho, functional)
        energy, derivative = np.zeros(rho.shape[2]), np.zeros((n_spin, 5, rho.shape[2]))
        tau = np.zeros_like(rho[:, :1])
        for s, channel in enumerate(channels):
            tau_s = functional.tau(*channel, w, geometry)
            n, g, held = hold(*channel)
            sigma = contracted_gradient(g)
            exc, vrho, vsigma, vtau = partial_derivatives(functional.parent, n, sigma, tau_s)
            energy[points] += (held * exc).cpu().numpy() / n_spin
            rows = torch.cat([vrho[None], 2 * vsigma * g.T, vtau[None]])
            derivative[s][:, points] = (w * held * rows).cpu()
            tau[s, 0, points] = tau_s.cpu() / n_spin
        correlation, vxc = self._correlation(rho, tau, points)
        energy += correlation
        derivative[:, : vxc.shape[1]] += vxc
        return energy, derivative

    def energy(self, exc: np.ndarray, rho: np.ndarray, derivative: np.ndarray) -> float:
        """E_xc; what stands for its derivatives cannot tell its change."""
        energy = float((exc * self.weights).sum())
        self.refine(energy)
        return energy


EXCHANGE_CORRELATION = {"ks": ExchangeCorrelation, "gks": FrozenTau}
"""By the name of the potential."""


@dataclass(frozen=True)
class Partials:
    """Partial derivatives of E_xc, all else fixed.

    ``values`` (n_spin, 4, n_points): by ρ_j and ∇ρ_j of each spin; ``weights`` (n_points,): by w_j;
    ``points`` (n_points, 3) and ``centers`` (n_centers, 3): by r_j and R_A; ``strain`` (3, 3): by
    ε, r → (1 + ε) r of points, nuclei and lattice together.
    """

    values: np.ndarray
    weights: np.ndarray
    points: np.ndarray
    centers: np.ndarray
    strain: np.ndarray


def _add_values(derivative: np.ndarray, part: Potential, points: Tensor) -> None:
    derivative[0, points] += part.vrho.cpu().numpy()
    derivative[1:, points] += part.vgrad.T.cpu().numpy()


def nuclei(mol: Any) -> np.ndarray:
    """Where tokens sit, (n_centers, 3): all atoms but ghosts, which bring basis functions only."""
    centers: np.ndarray = mol.atom_coords()[mol.atom_charges() > 0]
    return centers


def periodic_vectors(cell: Any) -> np.ndarray | None:
    """Cell vectors along which PySCF repeats orbitals, (n_periodic, 3); None: along none."""
    n = cell.dimension
    if n == 2 and cell.low_dim_ft_type != "inf_vacuum":
        n = 3  # slabs are repeated, across vacuum; only their Coulomb interaction is cut
    vectors: np.ndarray = cell.lattice_vectors()[:n]
    return vectors if n else None


def libxc_eff(xc_code: str, rho: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energy per electron and derivatives of a libxc functional; rho (n_spin, 4 or 5, n_points).

    The rows are ρ, ∇ρ and, for a meta-GGA, τ.
    """
    plain = numint.NumInt()
    xctype = "GGA" if rho.shape[1] == 4 else "MGGA"
    if len(rho) == 1:
        exc, vxc = plain.eval_xc_eff(xc_code, rho[0], deriv=1, xctype=xctype, spin=0)[:2]
        return exc, vxc[None]
    exc, vxc = plain.eval_xc_eff(xc_code, rho, deriv=1, xctype=xctype, spin=1)[:2]
    return exc, vxc


def same_xc(first: str, second: str) -> bool:
    """Whether two names stand for one functional of libxc."""
    try:
        return bool(libxc.parse_xc(first) == libxc.parse_xc(second))
    except (KeyError, ValueError):
        return False
