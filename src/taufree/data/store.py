"""Records on disk: one HDF5 file a system, and a manifest with their checksums.

Layout of a file: attributes say what was calculated, by which versions, and how it went; datasets
``positions`` (bohr) and ``numbers``, of a crystal also ``lattice`` (cell vectors as rows, bohr);
one group a density, named ``converged-2`` (density kind, grid level), with the arrays of
`taufree.data.generate.grid_record`; and a group ``orbitals`` with those that made each kind of
density, from which `taufree.data.package` can evaluate all of that again.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from pyscf import dft
from torch import Tensor

from taufree.data.generate import ParentRecord
from taufree.data.splits import Split, split_of
from taufree.data.systems import System
from taufree.errors import UserError
from taufree.files import write_atomic
from taufree.quantities import GridDensity

SCHEMA = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ReferenceDensity:
    """A density of the parent and the parent's exchange at it.

    ======== ================== ========================================================
    field    shape              meaning (atomic units)
    ======== ================== ========================================================
    density  GridDensity        ρ (n_spin = 1) or ρ↑, ρ↓ (n_spin = 2) and gradients
    tau      (n_spin, n_points) τ = ½ Σ|∇φ|² of the same channels
    lapl     (n_spin, n_points) ∇²ρ of the same channels; None where it is not known
    exc      (n_spin, n_points) e_x, energy per volume, of the unpolarized parent at n_spin·ρσ
    vrho     (n_spin, n_points) ∂e_x/∂ρ there
    vsigma   (n_spin, n_points) ∂e_x/∂σ there, σ = |n_spin ∇ρσ|²
    vtau     (n_spin, n_points) ∂e_x/∂τ there
    ======== ================== ========================================================

    All tensors are float64. ``density_kind`` is ``converged``, ``initial``, ``cycle1``, ...;
    ``e_tot`` is the parent's total energy of the converged density.
    """

    density: GridDensity
    tau: Tensor
    lapl: Tensor | None
    exc: Tensor
    vrho: Tensor
    vsigma: Tensor
    vtau: Tensor
    name: str
    formula: str
    kind: str
    parent: str
    numbers: tuple[int, ...]
    charge: int
    core_electrons: int  # in a pseudopotential
    spin: int
    grid_level: int
    density_kind: str
    e_tot: float

    @property
    def n_electrons(self) -> int:
        return sum(self.numbers) - self.charge - self.core_electrons

    @property
    def e_x(self) -> Tensor:
        """The parent's exchange energy E_x = ½ Σσ ∫ e_x[2ρσ], or ∫ e_x[ρ] for a closed shell."""
        return self.density.integral(self.exc)


@dataclass(frozen=True)
class Entry:
    """One line of the manifest. ``status`` is ``done`` or ``failed``, then with a ``reason``."""

    name: str
    formula: str
    kind: str
    digest: str
    status: str
    reason: str = ""
    file: str = ""
    sha256: str = ""
    e_tot: float | None = None


def digest(system: System, levels: Iterable[int]) -> str:
    """Checksum of all that defines a record; a file with another digest is out of date."""
    fields = {key: value for key, value in asdict(system).items() if value is not None}
    definition = {"schema": SCHEMA, "levels": list(levels), **fields}
    return hashlib.sha256(json.dumps(definition).encode()).hexdigest()


def file_of(system: System) -> str:
    """File name of a system; the kind tells CO and Co apart where case does not count."""
    return f"{system.kind}_{system.name}.h5"


def write_record(folder: Path, record: ParentRecord, digest: str) -> Entry:
    """Write one system's file atomically; ``digest`` is that of the calculation it holds.

    Raises
    ------
    UserError
        If the file cannot be written, for example because the disk is full.
    """
    system = record.system
    image = io.BytesIO()  # written by HDF5 itself, a file on a full disk would stay behind broken
    with h5py.File(image, "w") as file:
        file.attrs.update(_provenance())
        for key in ("name", "kind", "formula", "parent", "basis", "charge", "spin", "field"):
            file.attrs[key] = getattr(system, key)
        file.attrs.update(
            schema=SCHEMA, digest=digest, e_tot=record.e_tot, cycles=record.cycles, converged=True
        )
        file["positions"] = np.array(system.positions)
        file["numbers"] = system.numbers
        if period := system.period:
            file["lattice"] = np.array(period.vectors)
            file.attrs.update(
                mesh=period.mesh,
                smearing=period.smearing,
                pseudo=period.pseudo or "",
                core_electrons=period.core_electrons,
                exp_to_discard=period.exp_to_discard,
            )
        for kind, orbitals in record.orbitals.items():
            file[f"orbitals/{kind}"] = orbitals
        for (density_kind, level), arrays in record.densities.items():
            group = file.create_group(f"{density_kind}-{level}")
            group.attrs.update(density_kind=density_kind, grid_level=level)
            for key, values in arrays.items():
                group[key] = values
    path = folder / file_of(system)
    write_atomic(path, image.getvalue())
    return read_entry(path)


def _provenance() -> dict[str, str]:
    return {
        "taufree_version": version("taufree"),
        "pyscf_version": version("pyscf"),
        "libxc_version": str(dft.libxc.__version__),
    }


def read_entry(path: Path) -> Entry:
    """Read from a finished file its line of the manifest.

    Raises
    ------
    UserError
        If the file is not a record of this version's schema.
    """
    content = path.read_bytes()
    with _open(content, path) as file:
        attrs = file.attrs
        text = {key: str(attrs[key]) for key in ("name", "formula", "kind", "digest")}
        e_tot = float(attrs["e_tot"])
    checksum = hashlib.sha256(content).hexdigest()
    return Entry(**text, status="done", file=path.name, sha256=checksum, e_tot=e_tot)


def load_record(
    path: Path,
    levels: Collection[int] | None = None,
    density_kinds: Collection[str] | None = None,
    sha256: str | None = None,
) -> list[ReferenceDensity]:
    """Every density of one system's file, or those of some grid levels and density kinds.

    Raises
    ------
    UserError
        If the file is missing, unreadable, of another schema, or its checksum is not ``sha256``.
    """
    content = _read(path)
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path}: does not match its checksum; run `taufree data build` again")
    with _open(content, path) as file:
        return [
            _reference(file, group)
            for group in file.values()
            if "grid_level" in group.attrs
            and (levels is None or group.attrs["grid_level"] in levels)
            and (density_kinds is None or group.attrs["density_kind"] in density_kinds)
        ]


def load_orbitals(path: Path, density_kind: str) -> NDArray[np.float64]:
    """L of one of a system's densities, see `taufree.data.orbitals.factor`.

    Raises
    ------
    UserError
        If the file is missing, unreadable or of another schema.
    """
    with _open(_read(path), path) as file:
        factor: NDArray[np.float64] = file[f"orbitals/{density_kind}"][()]
        return factor


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; run `taufree data build` again") from error


def _open(content: bytes, path: Path) -> h5py.File:
    try:
        file = h5py.File(io.BytesIO(content), "r")
    except OSError as error:
        raise UserError(f"{path}: not a readable HDF5 file; delete it and build again") from error
    if file.attrs.get("schema") != SCHEMA:
        raise UserError(f"{path}: not a record of schema {SCHEMA}; delete it and build again")
    return file


def _reference(file: h5py.File, group: h5py.Group) -> ReferenceDensity:
    tensors = {key: torch.from_numpy(values[()]) for key, values in group.items()}
    centers = torch.from_numpy(file["positions"][()])
    lattice = torch.from_numpy(file["lattice"][()]) if "lattice" in file else None
    grid = {key: tensors.pop(key) for key in ("coords", "weights", "rho", "grad_rho")}
    attrs = file.attrs
    return ReferenceDensity(
        density=GridDensity(**grid, centers=centers, lattice=lattice),
        **tensors,
        name=str(attrs["name"]),
        formula=str(attrs["formula"]),
        kind=str(attrs["kind"]),
        parent=str(attrs["parent"]),
        numbers=tuple(int(z) for z in file["numbers"]),
        charge=int(attrs["charge"]),
        core_electrons=int(attrs.get("core_electrons", 0)),
        spin=int(attrs["spin"]),
        grid_level=int(group.attrs["grid_level"]),
        density_kind=str(group.attrs["density_kind"]),
        e_tot=float(attrs["e_tot"]),
    )


def entries_of(folder: Path, split: Split, kinds: Collection[str] | None = None) -> list[Entry]:
    """Manifest entries of the finished systems of a split, of some kinds or of all."""
    done = (e for e in read_manifest(folder).values() if e.status == "done")
    of_kind = (e for e in done if kinds is None or e.kind in kinds)
    return [e for e in of_kind if split_of(e.formula) == split]


def iter_records(
    folder: Path,
    split: Split | None = None,
    names: Collection[str] | None = None,
    levels: Collection[int] | None = None,
    density_kinds: Collection[str] | None = None,
) -> Iterator[ReferenceDensity]:
    """Densities of the finished systems in the manifest, or of a split or ``names`` among them.

    Raises
    ------
    UserError
        If a file does not match its checksum.
    """
    for entry in read_manifest(folder).values():
        if (
            entry.status == "done"
            and (split is None or split_of(entry.formula) == split)
            and (names is None or entry.name in names)
        ):
            yield from load_record(folder / entry.file, levels, density_kinds, entry.sha256)


def is_intact(folder: Path, entry: Entry) -> bool:
    """Whether the file of a finished entry is there and matches its checksum."""
    path = folder / entry.file
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256


def read_manifest(folder: Path) -> dict[str, Entry]:
    """Manifest entries by system name; empty if there is no manifest yet."""
    path = folder / MANIFEST
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
        return {line["name"]: Entry(**line) for line in content["systems"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a manifest; delete it and build again") from error


def write_manifest(folder: Path, entries: dict[str, Entry]) -> None:
    """Replace the manifest, in one step, by ``entries`` ordered by name."""
    lines = [asdict(entry) for _, entry in sorted(entries.items())]
    content = {"schema": SCHEMA, "checksum": manifest_checksum(entries), "systems": lines}
    write_atomic(folder / MANIFEST, json.dumps(content, indent=1).encode())


def manifest_checksum(entries: dict[str, Entry]) -> str:
    """SHA-256 over names and checksums of the finished systems: names a data set."""
    done = sorted((e.name, e.sha256) for e in entries.values() if e.status == "done")
    return hashlib.sha256(json.dumps(done).encode()).hexdigest()
