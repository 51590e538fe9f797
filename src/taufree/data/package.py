"""A data set as one small file: orbitals instead of densities on grids, to move between machines.

Only the orbitals cost a calculation; what stands on the grids follows from them in a second a
system. A package is one HDF5 file with a group a system, its orbitals in float32.
"""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from taufree.data.build import build
from taufree.data.generate import ParentRecord, densities, mean_field
from taufree.data.store import Entry, file_of, read_manifest
from taufree.data.systems import System, registry
from taufree.errors import UserError
from taufree.files import write_atomic

PACKAGE = 1  # version of the layout


def pack(folder: Path, package: Path) -> dict[str, int]:
    """Write what made every finished record of ``folder`` into one file.

    Raises
    ------
    UserError
        The folder has no finished records, or the file cannot be written.
    """
    entries = [e for e in read_manifest(folder).values() if e.status == "done"]
    if not entries:
        raise UserError(f"{folder} has no finished records; run `taufree data build` first")
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file.attrs["package"] = PACKAGE
        for entry in entries:
            with h5py.File(folder / entry.file) as record:
                group = file.create_group(entry.file)
                for key in ("name", "parent", "e_tot", "cycles"):
                    group.attrs[key] = record.attrs[key]
                for kind, values in record["orbitals"].items():
                    small = np.complex64 if np.iscomplexobj(values) else np.float32
                    options = {"compression": "gzip", "shuffle": True}
                    group.create_dataset(kind, data=values[()].astype(small), **options)
    write_atomic(package, image.getvalue())
    return {"systems": len(entries), "bytes": len(image.getvalue())}


def unpack(package: Path, folder: Path, **options: Any) -> dict[str, Entry]:
    """Make the records of a package again with the ``options`` of `taufree.data.build.build`.

    Densities are those of the orbitals in float32, so their checksums differ from the originals'.

    Raises
    ------
    UserError
        The file is not a package, or the folder cannot be written.
    """
    try:
        with h5py.File(package) as file:
            if file.attrs.get("package") != PACKAGE:
                raise UserError(f"{package}: not a package of version {PACKAGE}")
            systems = [
                replace(registry()[str(g.attrs["name"])], parent=str(g.attrs["parent"]))
                for g in file.values()
            ]
    except OSError as error:
        raise UserError(f"{package}: not a readable package ({error})") from error
    except KeyError as error:
        raise UserError(f"{package}: {error} is of another version of taufree") from error
    make = partial(_restored, package.absolute())
    return build(folder, systems, make=make, **options)


def _restored(package: Path, system: System, levels: tuple[int, ...]) -> ParentRecord:
    with h5py.File(package) as file:
        group = file[file_of(system)]
        factors = {k: v[()].astype(np.promote_types(v.dtype, float)) for k, v in group.items()}
        e_tot, cycles = float(group.attrs["e_tot"]), int(group.attrs["cycles"])
    on_grids = densities(system, mean_field(system), factors, levels)
    return ParentRecord(system, e_tot, cycles, factors, on_grids)
