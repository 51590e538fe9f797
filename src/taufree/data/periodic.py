"""Crystals in PySCF: Gaussian density fitting and atom-centred (Becke) grids.

PySCF's density fitting splits the Coulomb interaction by range: what is short-ranged is summed in
real space, the rest on plane waves up to ``PLANE_WAVES``. With pseudopotentials, too: the uniform
grids that their bases ask for have up to four million points.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ase.units import Hartree
from numpy.typing import NDArray
from pyscf.pbc import dft, gto
from pyscf.pbc.dft import numint

from taufree.data import orbitals
from taufree.data.systems import Periodicity, System
from taufree.data.time_reversal import PairedGDF, PairedNumInt, Pairs

Array = NDArray[Any]

GRID_LEVEL = 1
PLANE_WAVES = 25.0
"""Kinetic energy cutoff (Ha) of the long-ranged part: more leaves less to costly real space."""
MAX_CYCLES = 50
MAX_SECONDS = 900.0
"""Processor time after which a calculation is given up."""


def mean_field(system: System) -> dft.krks.KRKS:
    """KRKS or, with magnetic moments, KUKS of the parent; PySCF's defaults but for the above."""
    period = system.period
    assert period is not None
    cell = gto.Cell(
        atom=list(zip(system.symbols, system.positions, strict=True)),
        a=np.array(period.vectors),
        unit="Bohr",
        basis=system.basis,
        pseudo=period.pseudo,
        charge=system.charge,
        spin=None,  # whatever the electrons of one cell need
        exp_to_discard=None if period.pseudo else period.exp_to_discard,
        verbose=0,
    )
    cell.build(dump_input=False, parse_arg=False)
    if period.moments:
        cell.spin = 0  # of all k-points together, to begin with; smeared electrons change it
    mf = (dft.KUKS if period.moments else dft.KRKS)(
        cell, cell.make_kpts(period.mesh), xc=system.parent
    )
    mf = mf.density_fit()
    mf.with_df = mf.with_df.view(PairedGDF)
    mf.with_df.mesh = cell.cutoff_to_mesh(PLANE_WAVES)
    mf.grids = dft.BeckeGrids(cell)
    mf.grids.level = GRID_LEVEL
    if period.smearing:
        mf = mf.smearing(sigma=period.smearing, method="gauss")
    mf._numint = PairedNumInt()
    mf.max_cycle = MAX_CYCLES
    mf.chkfile = None
    return mf


def converge(
    mf: dft.krks.KRKS, period: Periodicity, callback: Callable[[dict[str, Any]], None] | None = None
) -> None:
    """Run the SCF, from a magnetic first guess where there are moments; see ``mf.converged``."""
    end = time.process_time() + MAX_SECONDS

    def watch(scf: dict[str, Any]) -> None:
        if callback:
            callback(scf)
        if time.process_time() > end:
            raise TimeoutError(f"not converged in {MAX_SECONDS:g} s of processor time")

    mf.callback = watch
    mf.kernel(magnetic_guess(mf, period.moments) if period.moments else None)


def magnetic_guess(mf: dft.kuks.KUKS, moments: tuple[float, ...]) -> Array:
    """The default guess with each atom's share of the density matrix made spin-polarized.

    Shapes: (2, n_k, n_ao, n_ao).
    """
    cell = mf.cell
    guess = np.sum(np.asarray(mf.get_init_guess()), axis=0)
    polarization = np.zeros(cell.nao)
    for (_, _, first, last), charge, moment in zip(
        cell.aoslice_by_atom(), cell.atom_charges(), moments, strict=True
    ):
        polarization[first:last] = moment / charge
    mean = (polarization[:, None] + polarization) / 2
    return np.stack([guess * (1 + mean) / 2, guess * (1 - mean) / 2])


def fields(
    mf: dft.krks.KRKS, factors: Sequence[Array], level: int
) -> tuple[Array, Array, list[Array]]:
    """Points, weights, and of each density ρ, ∇ρ, ∇²ρ, τ by spin, (n_spin, 6, n_points)."""
    cell, kpts = mf.cell, mf.kpts
    grids = dft.BeckeGrids(cell)
    grids.level = level
    grids.build()
    pairs = Pairs(cell, kpts)
    weight = np.sqrt(pairs.weight / len(pairs.kept))[:, None, None]
    channels = [
        f.reshape(-1, *f.shape[-3:])[:, pairs.kept] * weight for f in factors
    ]  # (n_spin, n_kept, n_ao, n_occupied)
    parts: list[list[Array]] = []
    for ao, *_ in numint.KNumInt().block_loop(
        cell, grids, deriv=2, kpts=kpts[pairs.kept], max_memory=500
    ):
        parts.append(
            [np.array([orbitals.fields(zip(ao, o, strict=True)) for o in c]) for c in channels]
        )
    together = [np.concatenate(p, axis=-1) for p in zip(*parts, strict=True)]
    return grids.coords, grids.weights, together


def properties(mf: dft.krks.KRKS) -> dict[str, float | None]:
    """Energy, band gap and magnetic moment of a cell; the gap only where nothing is smeared.

    The energy of smeared electrons is extrapolated to no smearing, (E + F)/2.
    """
    smeared = bool(getattr(mf, "sigma", 0))
    occupations, energies = (
        np.concatenate([np.ravel(values) for values in arrays])
        for arrays in (mf.mo_occ, mf.mo_energy)
    )
    held = occupations > 0
    gap = energies[~held].min(initial=np.inf) - energies[held].max()
    moment = 0.0
    if np.ndim(mf.make_rdm1()) == 4:
        up, down = (np.concatenate([np.ravel(k) for k in spin]).sum() for spin in mf.mo_occ)
        moment = float(up - down) / len(mf.kpts)
    return {
        "energy_hartree": float(mf.e_zero if smeared else mf.e_tot),
        "gap_ev": None if smeared or np.isinf(gap) else float(gap) * Hartree,
        "moment": moment,
    }
