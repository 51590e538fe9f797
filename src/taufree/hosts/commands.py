"""``taufree relax``, ``vibrations`` and ``md``: options in, ASE at work, a table and JSON out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from taufree.console import Report, facts, refuse_unwritable, reported, stderr
from taufree.options import (
    Basis,
    Charge,
    GridLevel,
    Json,
    Kpts,
    MaxMemory,
    Model,
    Smearing,
    Spin,
)

if TYPE_CHECKING:
    from ase import Atoms

    from taufree.hosts.dynamics import Progress as Tell

File = Annotated[
    Path, typer.Argument(help="Structure: xyz, extxyz, cif, POSCAR, traj, ... (of frames the last)")
]
Parent = Annotated[
    bool, typer.Option("--parent", help="Calculate with the orbital-dependent parent instead.")
]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="Trajectory (ASE's .traj).")]
KEPT = "The trajectory is kept: the same command with it as FILE goes on from its last step."


@reported(resume=KEPT)
def relax(
    file: File,
    cell: Annotated[bool, typer.Option("--cell", help="Relax the cell of a crystal too.")] = False,
    cell_only: Annotated[
        bool,
        typer.Option(
            "--cell-only",
            help="The cell alone, atoms at their fractions of it; also without pseudopotentials.",
        ),
    ] = False,
    fmax: Annotated[
        float, typer.Option(min=1e-5, help="Largest force left, eV/Å; of a cell alone, eV.")
    ] = 0.01,
    steps: Annotated[int, typer.Option(min=1, help="At most so many.")] = 200,
    out: Out = None,
    basis: Basis = None,
    charge: Charge = None,
    spin: Spin = None,
    kpts: Kpts = None,
    smearing: Smearing = 0.0,
    model: Model = "ms2",
    parent: Parent = False,
    grid_level: GridLevel = 3,
    max_memory: MaxMemory = None,
    json: Json = None,
) -> Report:
    """Relax a molecule or a crystal, with --cell its cell too."""
    from taufree.errors import UserError
    from taufree.hosts import dynamics

    atoms, _ = _calculated(
        file, model, parent, basis, charge, spin, kpts, smearing, grid_level, max_memory
    )
    if (cell or cell_only) and not atoms.pbc.all():
        raise UserError(
            f"{file} has no cell to relax: leave out --cell, or write it with its cell."
        )
    out = _beside(out, file, "relaxed.traj")
    with _bar("relax", steps) as tell:
        result = dynamics.relax(
            atoms, out, cell=cell, cell_only=cell_only, fmax=fmax, steps=steps, progress=tell
        )
    failure = f"forces are left after {steps} steps: go on from {out}."
    return Report(result, facts(result), None if result["converged"] else failure)


@reported(resume="Finished displacements are kept; the same command goes on.")
def vibrations(
    file: File,
    delta: Annotated[float, typer.Option(min=1e-4, max=0.1, help="Displacement, Å.")] = 0.01,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keeps finished displacements.")
    ] = None,
    basis: Basis = None,
    charge: Charge = None,
    spin: Spin = None,
    kpts: Kpts = None,
    smearing: Smearing = 0.0,
    model: Model = "ms2",
    parent: Parent = False,
    grid_level: GridLevel = 3,
    max_memory: MaxMemory = None,
    json: Json = None,
) -> Report:
    """Harmonic frequencies of a relaxed structure."""
    from taufree.hosts import dynamics

    atoms, key = _calculated(
        file, model, parent, basis, charge, spin, kpts, smearing, grid_level, max_memory
    )
    # displacements of another structure or of other settings are not taken up
    key = hashlib.sha256(f"{key}{delta}".encode() + atoms.positions.tobytes()).hexdigest()[:8]
    out = _beside(out, file, f"vibrations-{key}")
    with _bar("vibrations", 6 * len(atoms) + 1) as tell:
        result = dynamics.vibrations(atoms, out, delta=delta, progress=tell)
    return Report(result, facts(result), _not_at_a_minimum(result))


@reported(resume="The trajectory is kept; the same command goes on.")
def md(
    file: File,
    steps: Annotated[int, typer.Option(min=1, help="In all, with those of an earlier run.")] = 200,
    timestep: Annotated[float, typer.Option(min=1e-3, help="Femtoseconds.")] = 0.5,
    temperature: Annotated[float, typer.Option(min=0, help="Of the first velocities, K.")] = 300.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the first velocities.")] = 0,
    out: Out = None,
    basis: Basis = None,
    charge: Charge = None,
    spin: Spin = None,
    kpts: Kpts = None,
    smearing: Smearing = 0.0,
    model: Model = "ms2",
    parent: Parent = False,
    grid_level: GridLevel = 3,
    max_memory: MaxMemory = None,
    json: Json = None,
) -> Report:
    """Molecular dynamics at constant energy (velocity Verlet)."""
    from taufree.hosts import dynamics

    atoms, _ = _calculated(
        file, model, parent, basis, charge, spin, kpts, smearing, grid_level, max_memory
    )
    out = _beside(out, file, "md.traj")
    with _bar("dynamics", steps) as tell:
        result = dynamics.molecular_dynamics(
            atoms,
            out,
            steps=steps,
            timestep_fs=timestep,
            temperature=temperature,
            seed=seed,
            progress=tell,
        )
    return Report(result, facts(result))


def _calculated(
    file: Path,
    model: str,
    parent: bool,
    basis: str | None,
    charge: int | None,
    spin: int | None,
    kpts: tuple[int, int, int] | None,
    smearing: float,
    grid_level: int,
    max_memory: int | None,
) -> tuple[Atoms, str]:
    """The structure with its calculator, and what identifies the latter's settings."""
    from taufree.ase import TauFree
    from taufree.hosts.structures import charge_and_spin, read_structure
    from taufree.model.storage import fingerprint

    atoms = read_structure(file)
    settings: dict[str, Any] = {
        "model": model, "parent": parent, "basis": basis, "charge": charge, "spin": spin,
        "kpts": kpts, "smearing": smearing, "grid_level": grid_level, "max_memory": max_memory,
    }  # fmt: skip
    # the file may have a charge and a moment, of which resumed work must know too
    settings["charge"], settings["spin"] = charge_and_spin(atoms, charge, spin)
    atoms.calc = TauFree(**settings)
    atoms.calc.mean_field(atoms)  # bad settings are refused before the first step
    # a model may be replaced by another of the same name
    return atoms, f"{settings}{fingerprint(atoms.calc.functional)}"


def _beside(out: Path | None, file: Path, ending: str) -> Path:
    """The path asked for, or one in the working folder named after the structure."""
    found = out or Path(f"{file.stem}-{ending}")
    if found.suffix:
        refuse_unwritable(found, "--out")
    return found


@contextmanager
def _bar(what: str, total: int) -> Iterator[Tell]:
    """A progress bar with the last step's line; without a terminal nothing."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), TextColumn("{task.fields[line]}"),
        console=stderr, disable=not stderr.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task(what, total=total, line="")
        yield lambda step, line: bar.update(task, completed=step, line=line)


def _not_at_a_minimum(result: dict[str, Any]) -> str | None:
    force = result["largest_force_ev_per_angstrom"]
    if force < 0.05:  # eV/Å
        return None
    return f"forces up to {force:.2f} eV/Å: this is no minimum, relax the structure first."
