"""How all is measured: interleaved repeats, medians, peak memory, and on what machine."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numba
import numpy as np
from ase import Atoms
from matplotlib.figure import Figure
from pyscf import dft, lib
from pyscf.pbc.scf.khf import KSCF
from rich.table import Table
from torch import Tensor

import taufree
from taufree import about
from taufree.functional import Functional, Geometry, Potential
from taufree.hosts.structures import molecule, read_structure

GGA = "PBE"
DEORBITALIZED = "deorbitalized"
COLORS = {DEORBITALIZED: "#0072b2", GGA: "#009e73", "parent": "#d55e00"}

Say = Callable[[str], None]
"""Progress: called with one line before each part that takes long."""


def interleaved(tasks: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Wall times in seconds of each task, run in turn: drift of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            gc.collect()
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(seconds: list[float]) -> dict[str, Any]:
    """Median, extremes and every single time, in seconds."""
    return {
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "times_s": seconds,
    }


class Stopwatch(Functional):
    """A functional that times its two calls and remembers what it was asked last."""

    def __init__(self, functional: Functional) -> None:
        super().__init__(functional.network, functional.name)
        self.geometry_s: list[float] = []
        self.potential_s: list[float] = []
        self.coords: tuple[Tensor, ...] = ()
        self.in_sight = 0.0
        self.density: tuple[Tensor, ...] = ()
        self.exchange = 0.0

    def double(self) -> Stopwatch:
        """In float64, with the same records."""
        twin = Stopwatch(super().double())
        twin.geometry_s, twin.potential_s = self.geometry_s, self.potential_s
        return twin

    def geometry(self, *args: Any, **kwargs: Any) -> Geometry:
        start = time.perf_counter()
        geometry = super().geometry(*args, **kwargs)
        self.geometry_s.append(time.perf_counter() - start)
        self.coords = args[:2]
        token_map = geometry.token_map
        self.in_sight = len(token_map.tile) / max(1, token_map.n_tiles)
        return geometry

    def potential(self, *args: Any, **kwargs: Any) -> Potential:
        start = time.perf_counter()
        potential = super().potential(*args, **kwargs)
        self.potential_s.append(time.perf_counter() - start)
        self.density = args[:3]
        self.exchange = float(potential.exc @ self.density[2])
        return potential


def mean_fields(
    atoms: Atoms, functional: Functional, basis: str, grid_level: int, max_memory: int | None
) -> dict[str, dft.rks.RKS]:
    """Restricted Kohn-Sham objects by functional, density-fitted, on one molecule."""
    mol = molecule(atoms, basis, spin=int(atoms.numbers.sum()) % 2)
    if max_memory is not None:
        mol.max_memory = max_memory

    def plain(xc: str) -> dft.rks.RKS:
        mf = dft.RKS(mol, xc=xc).density_fit()
        mf.grids.level = grid_level
        mf.chkfile = None
        return mf

    parent = functional.parent.xc
    return {
        DEORBITALIZED: taufree.deorbitalize(plain(parent), functional),
        GGA: plain(GGA),
        parent: plain(parent),
    }


def xc_build(mf: Any, dm: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Electrons, E_xc and V_xc, called as PySCF's `get_veff` calls it."""
    max_memory = mf.max_memory - lib.current_memory()[0]
    where = {"kpts": mf.kpts} if isinstance(mf, KSCF) else {}
    return mf._numint.nr_rks(mf.mol, mf.grids, mf.xc, dm, **where, max_memory=max_memory)


def read_or(default: Callable[[], Atoms], path: Path | None) -> tuple[str, Atoms]:
    """The molecule of a structure file, or a default; and what to call it."""
    if path is None:
        atoms = default()
        return atoms.get_chemical_formula(), atoms
    return path.stem, read_structure(path)


def color(name: str) -> str:
    """One colour for each functional in all plots."""
    return COLORS.get(name.split(",")[0], COLORS["parent"])


class PeakMemory:
    """Growth of this process's memory at its highest, in MB, over a ``with`` block.

    ``mb`` is None where the system does not tell (Linux does, in /proc).
    """

    mb: float | None = None

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if Path("/proc/self/clear_refs").exists():
            ctypes.CDLL(None).malloc_trim(0)  # memory freed before does not hide what is used now
            Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
            self._before = _status_mb("VmRSS")
        return self

    def __exit__(self, *exception: object) -> None:
        if Path("/proc/self/clear_refs").exists():
            self.mb = _status_mb("VmHWM") - self._before


def _status_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}")


def conditions(functional: Functional) -> dict[str, Any]:
    """Versions, threads, processor and load: without these a time says nothing."""
    what = about.about()
    return {
        "versions": what["versions"],
        "threads": what["threads"] | {"numba": numba.get_num_threads()},
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "device": str(functional.device),
        "dtype": str(functional.dtype).removeprefix("torch."),
        "model": functional.name,
        "parameters": sum(p.numel() for p in functional.network.parameters()),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def caption(result: dict[str, Any]) -> str:
    """One line for below a table or in a plot: where these times are from."""
    on = result["conditions"]
    versions = on["versions"]
    threads = ", ".join(f"{n} {library}" for library, n in on["threads"].items())
    return (
        f"{on['cpu']}, threads: {threads} of {on['cores']} cores, load "
        f"{on['load_average']:.1f} at the start; network on {on['device']} in {on['dtype']}; "
        f"PySCF {versions['pyscf']}, PyTorch {versions['torch']}"
    )


def sign(figure: Figure, result: dict[str, Any]) -> Figure:
    """Put the caption below a figure."""
    width = int(15 * figure.get_figwidth())
    figure.supxlabel(textwrap.fill(caption(result), width), fontsize=7, color="0.3")
    return figure


def new_table(title: str, columns: list[str], result: dict[str, Any]) -> Table:
    """A table whose first column is text and whose others are numbers."""
    table = Table(title=title, caption=caption(result))
    table.title_justify = table.caption_justify = "left"
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table
