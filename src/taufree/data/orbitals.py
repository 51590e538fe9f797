"""Orbitals of a density matrix, their densities on a grid, and densities around a converged one.

D = L Lᴴ with as many columns of L as there are occupied (natural) orbitals, each times the root of
its occupation: L is far smaller than D and than any density on a grid, and says as much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyscf import df

Array = NDArray[Any]

OCCUPIED = 1e-10  # of the largest eigenvalue of a density matrix: what counts as occupied
EXPONENTS = {0: (0.1, 0.4, 1.6, 6.4, 25.6), 1: (0.1, 0.4, 1.6, 6.4), 2: (0.2, 0.8)}
"""Of the Gaussians, by l, that make up a random potential."""
SMALLEST_GAP = 0.1  # hartree: closer orbitals would mix out of proportion


def factor(dm: Array) -> Array:
    """L of D = L Lᴴ, negative occupations left out: (..., n_ao, n_ao) -> (..., n_ao, n_occupied).

    Channels with fewer orbitals than others have columns of zeros.
    """
    occupation, vectors = np.linalg.eigh(dm)
    held = occupation > OCCUPIED * max(occupation.max(), 1e-300)
    most = int(held.sum(-1).max())
    root = np.sqrt(np.where(held, occupation, 0.0))
    return (vectors * root[..., None, :])[..., -most:] if most else vectors[..., :0]


def fields(blocks: Iterable[tuple[Array, Array]]) -> Array:
    """ρ, ∇ρ, ∇²ρ and τ = ½ Σ|∇φ|² of the orbitals φ = χ L, (6, n_points).

    ``blocks`` are pairs of PySCF's atomic orbitals with second derivatives, (10, n_points, n_ao),
    and L, (n_ao, n_occupied); their densities are added up (k-points, weights within L).
    """
    total: Any = 0.0
    for ao, orbitals in blocks:
        phi, *gradient = (ao[c] @ orbitals for c in range(4))
        laplacian = (ao[4] + ao[7] + ao[9]) @ orbitals
        tau = sum(0.5 * _density(g, g) for g in gradient)
        parts = [_density(phi, phi), *(2 * _density(phi, g) for g in gradient)]
        total = total + np.stack([*parts, 2 * _density(phi, laplacian) + 4 * tau, tau])
    return np.asarray(total)


def _density(a: Array, b: Array) -> Array:
    """Re Σ_i a_i* b_i at each point."""
    density = np.einsum("pi,pi->p", a.real, b.real)
    return density + np.einsum("pi,pi->p", a.imag, b.imag) if np.iscomplexobj(a) else density


def perturbed(mf: Any, rng: np.random.Generator) -> Array:
    """Density matrix of orbitals that answer to first order to a random smooth potential δv.

    δv is a sum of Gaussians on the nuclei (s, p, d) with random coefficients. The orbitals
    φ_i + Σ_a φ_a U_ai, U_ai = ⟨a|δv|i⟩ / (ε_i − ε_a), are orthonormalized; U is scaled such that
    between 0.01% and 3% of the electrons are moved. ``mf`` is a converged RKS or UKS of a molecule.
    """
    mol = mf.mol
    shells = [[l, [a, 1.0]] for l, exponents in EXPONENTS.items() for a in exponents]
    gaussians = df.make_auxmol(mol, {symbol: shells for symbol in set(mol.elements)})
    integrals = df.incore.aux_e2(mol, gaussians, "int3c1e")
    moved = 10 ** rng.uniform(-4, -1.5)
    potential = integrals @ (rng.normal(size=gaussians.nao) * (rng.random(gaussians.nao) < 0.5))

    def mix(occupied: Array, empty: Array, gap: Array) -> Array:
        mixing = empty.T @ potential @ occupied / -gap
        scale = np.sqrt(moved * occupied.shape[1] / max(np.sum(mixing**2), 1e-300))
        return np.asarray(scale * mixing)

    return _mixed(mf, mix)


def rotated(mf: Any, rng: np.random.Generator) -> Array:
    """Density matrix of orbitals turned at random, stiff directions as much as soft ones.

    Orbitals as in `perturbed` with U_ai = c g_ai / √(ε_a − ε_i), g normally distributed, c such
    that the orbital energies rise by 0.001 to 0.03 hartree an electron. An error ΔF_ai of the
    Fock matrix lets a self-consistent calculation sink by Σ ΔF_ai² / (ε_a − ε_i), and that is
    what the squared error of the energy's change is in the mean over g: directions count as much
    as they do for self-consistency, cores among them.
    """
    rise = 10 ** rng.uniform(-3, -1.5)

    def mix(occupied: Array, empty: Array, gap: Array) -> Array:
        size = np.sqrt(rise * occupied.shape[1] / gap.size)
        return np.asarray(size * rng.normal(size=gap.shape) / np.sqrt(gap))

    return _mixed(mf, mix)


def _mixed(mf: Any, mix: Callable[[Array, Array, Array], Array]) -> Array:
    """Density matrix with U_ai = mix(occupied, empty, ε_a − ε_i) of each spin."""
    channels = np.ndim(mf.mo_occ) == 2
    per_spin = [x if channels else [x] for x in (mf.mo_coeff, mf.mo_occ, mf.mo_energy)]
    matrices = [_turned(c, n, e, mix) for c, n, e in zip(*per_spin, strict=True)]
    return np.array(matrices) if channels else matrices[0]


def _turned(
    coeff: Array, occ: Array, energy: Array, mix: Callable[[Array, Array, Array], Array]
) -> Array:
    held = occ > 0
    occupied, empty = coeff[:, held], coeff[:, ~held]
    if not held.any() or held.all():
        return (coeff * occ) @ coeff.T
    mixing = mix(occupied, empty, np.maximum(energy[~held, None] - energy[held], SMALLEST_GAP))
    values, vectors = np.linalg.eigh(np.eye(held.sum()) + mixing.T @ mixing)
    orbitals = (occupied + empty @ mixing) @ (vectors / np.sqrt(values)) @ vectors.T
    return occ[held][0] * orbitals @ orbitals.T
