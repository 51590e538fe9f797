"""What nuclei do under a calculator: find a minimum, vibrate, move. ASE does the work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.filters import FrechetCellFilter, StrainFilter
from ase.io import Trajectory, read, write
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.vibrations import Vibrations
from scipy.linalg import null_space

from taufree.errors import UserError

Progress = Callable[[int, str], None]
"""Called after every step with its number and a line on what it gave."""


SAME_ENERGY = 1e-4
"""eV: far more than an SCF leaves open, far less than other settings change."""


ON_A_LINE = 0.02
"""Å: molecules whose atoms are closer to an axis are linear, but for what a relaxation left."""


def silent(step: int, line: str) -> None:
    """No progress."""


def relax(
    atoms: Atoms,
    out: Path,
    *,
    cell: bool = False,
    cell_only: bool = False,
    fmax: float = 0.01,
    steps: int = 200,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Move atoms, and with ``cell`` the cell too, until no force is larger than ``fmax`` (eV/Å).

    With ``cell_only`` atoms keep their fractions of the cell, and ``fmax`` (eV) is of ∂E/∂ε: no
    forces are needed, and where symmetry holds the atoms it is the whole minimum. ``atoms`` has a
    calculator and is changed in place. Every step goes to ``out`` (ASE's .traj), the last one also
    to a file beside it, .xyz.
    """
    start, cell = atoms.copy(), cell or cell_only
    target: Any = StrainFilter(atoms) if cell_only else FrechetCellFilter(atoms) if cell else atoms
    optimizer = BFGS(target, trajectory=str(out), logfile=None)

    def tell() -> None:
        energy = atoms.get_potential_energy()
        largest = _largest((target if cell_only else atoms).get_forces())
        what = f"∂E/∂ε {largest:8.4f} eV" if cell_only else f"force {largest:8.4f} eV/Å"
        progress(optimizer.nsteps, f"{energy:16.6f} eV  largest {what}")

    optimizer.attach(tell)
    converged = optimizer.run(fmax=fmax, steps=steps)
    final = out.with_suffix(".xyz")
    write(final, atoms, format="extxyz")
    result: dict[str, Any] = {
        "converged": bool(converged),
        "steps": optimizer.nsteps,
        "energy_ev": float(atoms.get_potential_energy()),
        "largest_move_angstrom": _largest(atoms.positions - start.positions),
        "file": str(final),
        "trajectory": str(out),
    }
    if not cell_only:
        result["largest_force_ev_per_angstrom"] = _largest(atoms.get_forces())
    if cell:
        result |= {
            "volume_angstrom3": float(atoms.get_volume()),
            "cell_lengths_angstrom": atoms.cell.lengths().tolist(),
            "cell_angles_degree": atoms.cell.angles().tolist(),
            "largest_stress_gpa": float(np.abs(atoms.get_stress()).max() / units.GPa),
        }
    return result


def vibrations(
    atoms: Atoms, folder: Path, *, delta: float = 0.01, progress: Progress = silent
) -> dict[str, Any]:
    """Harmonic frequencies by central differences of forces at displacements ``delta`` (Å).

    ``folder`` keeps every displacement: an interrupted calculation goes on there. Motion as a whole
    (see `rigid_motion`) is projected out of the Hessian, so that a soft mode is found among the
    others however much noise is in that of rotations. Imaginary frequencies are given as negative
    numbers.
    """
    work = _Counted(atoms, name=str(folder), delta=delta)
    work.progress = progress
    work.clean(empty_files=True)  # what an interruption left
    work.run()
    mass = np.repeat(atoms.get_masses()[work.indices], 3) ** 0.5
    hessian = work.get_vibrations().get_hessian_2d() / np.outer(mass, mass)
    rigid = rigid_motion(atoms)[:, (3 * work.indices[:, None] + np.arange(3)).ravel()]
    internal, whole = (
        _frequencies(basis @ hessian @ basis.T) for basis in (null_space(rigid).T, rigid)
    )
    positive = internal[internal > 0]
    return {
        "frequencies_cm": internal.tolist(),
        "rigid_cm": whole.tolist(),
        "imaginary": int((internal < 0).sum()),
        "zero_point_energy_ev": float(positive.sum() / 2 * units.invcm),
        "largest_force_ev_per_angstrom": _largest(atoms.get_forces()),
        "folder": str(folder),
    }


class _Counted(Vibrations):
    progress: Progress
    done = 0

    def calculate(self, atoms: Atoms, disp: Any) -> dict[str, Any]:
        result: dict[str, Any] = super().calculate(atoms, disp)
        self.done += 1
        self.progress(self.done, f"displacement {disp.name}")
        return result


def rigid_motion(atoms: Atoms) -> np.ndarray:
    """Orthonormal mass-weighted displacements (n_rigid, 3 n_atoms) that move all atoms as one.

    Three translations and, of a molecule, as many rotations about its principal axes: two if its
    atoms are on average less than `ON_A_LINE` away from one. Atoms in constraints hold the others:
    there are none then.
    """
    mass = atoms.get_masses()
    if atoms.constraints:
        return np.zeros((0, 3 * len(atoms)))
    translations = [np.outer(mass**0.5, axis) for axis in np.eye(3)]
    if atoms.pbc.any():
        return np.reshape(translations, (3, -1)) / mass.sum() ** 0.5
    r = atoms.positions - atoms.get_center_of_mass()
    moments, axes = atoms.get_moments_of_inertia(vectors=True)
    turning = axes[moments > ON_A_LINE**2 * mass.sum()]
    rotations = [mass[:, None] ** 0.5 * np.cross(axis, r) for axis in turning]
    motion = np.reshape([*translations, *rotations], (-1, r.size))
    return motion / np.linalg.norm(motion, axis=1, keepdims=True)


def _frequencies(hessian: np.ndarray) -> np.ndarray:
    """Ascending, cm⁻¹, imaginary ones negative; from a mass-weighted Hessian in eV/(Å² u)."""
    squares = np.linalg.eigvalsh(hessian)
    atomic = units._hbar * units.m / (units._e * units._amu) ** 0.5 / units.invcm
    return np.sign(squares) * np.sqrt(abs(squares)) * atomic


def molecular_dynamics(
    atoms: Atoms,
    out: Path,
    *,
    steps: int,
    timestep_fs: float = 0.5,
    temperature: float = 300.0,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """NVE dynamics by velocity Verlet; every step goes to ``out`` (ASE's .traj).

    Velocities are drawn once for ``temperature`` (K) unless ``atoms`` has some; the whole, if no
    atom is held, does not move nor, if it is neither linear nor periodic, turn. If ``out`` is
    there, begun from the same atoms, dynamics goes on from its last step until there are ``steps``
    of them.

    Returns
    -------
    dict
        ``drift_hartree_per_atom`` is the trend of the total energy (a straight line's end less its
        start), ``largest_deviation_hartree_per_atom`` that from the first step: velocity Verlet
        swings about a conserved energy by an amount that falls with the square of the time step.

    Raises
    ------
    UserError
        ``out`` belongs to something else: other atoms, another time step, or a calculator that
        gives its last step another energy.
    """
    done, energies = _take_up(atoms, out, timestep_fs)
    if not done and not atoms.get_momenta().any():
        rng = np.random.default_rng(seed)
        spread = np.sqrt(units.kB * temperature * atoms.get_masses())
        atoms.set_momenta(spread[:, None] * rng.standard_normal((len(atoms), 3)))
        if len(rigid := rigid_motion(atoms)):
            Stationary(atoms)
        if len(rigid) == 6:
            ZeroRotation(atoms)
    with Trajectory(str(out), "a" if done else "w", atoms) as trajectory:
        dynamics = VelocityVerlet(atoms, timestep=timestep_fs * units.fs)

        def tell() -> None:
            step = max(done - 1, 0) + dynamics.nsteps
            if step < len(energies):
                return  # the step that is taken up again
            energies.append(_conserved(atoms))
            atoms.info["timestep_fs"] = timestep_fs
            trajectory.write()
            progress(step, f"{energies[-1]:16.6f} eV  {atoms.get_temperature():7.1f} K")

        dynamics.attach(tell)
        if steps + 1 > len(energies):
            dynamics.run(steps + 1 - max(done, 1))
    e = (np.array(energies) - energies[0]) / len(atoms) / units.Hartree
    slope = np.polynomial.Polynomial.fit(np.arange(len(e)), e, 1).convert().coef[-1]
    return {
        "steps": len(energies) - 1,
        "timestep_fs": timestep_fs,
        "energy_ev": float(energies[-1]),
        "temperature_k": float(atoms.get_temperature()),
        "drift_hartree_per_atom": float(slope * (len(e) - 1)),
        "largest_deviation_hartree_per_atom": float(np.abs(e).max()),
        "trajectory": str(out),
    }


def _take_up(atoms: Atoms, out: Path, timestep_fs: float) -> tuple[int, list[float]]:
    """Frames of an interrupted run and their energies; ``atoms`` gets the last one's state."""
    if not out.exists() or not out.stat().st_size:
        return 0, []
    try:
        frames: Any = read(out, index=":")
    except Exception as error:  # whatever ASE's reader stumbles over
        raise UserError(f"{out} is no trajectory of ASE's: remove it or choose another.") from error
    first = frames[0]
    same = (
        np.array_equal(first.numbers, atoms.numbers)
        and np.allclose(first.positions, atoms.positions, atol=1e-8)
        and first.info.get("timestep_fs") == timestep_fs
    )
    if not same:
        raise UserError(
            f"{out} was begun from other atoms or with another time step: remove it, or choose "
            "another file for the trajectory."
        )
    atoms.positions, last = frames[-1].positions, frames[-1]
    if abs(atoms.get_potential_energy() - last.get_potential_energy()) > SAME_ENERGY:
        raise UserError(
            f"{out} was begun with other settings or another model, which give another energy: "
            "remove it, or choose another file for the trajectory."
        )
    atoms.set_momenta(last.get_momenta())
    return len(frames), [_conserved(frame) for frame in frames]


def _conserved(atoms: Atoms) -> float:
    """Kinetic energy and the potential one that forces derive from, of smeared occupations too."""
    return atoms.get_potential_energy(force_consistent=True) + atoms.get_kinetic_energy()


def _largest(vectors: np.ndarray) -> float:
    return float(np.linalg.norm(vectors, axis=1).max())
