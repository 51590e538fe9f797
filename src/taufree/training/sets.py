"""Read from a data folder what a run learns from, and what it is judged by."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from taufree.console import stderr
from taufree.data.splits import Split
from taufree.data.store import Entry, ReferenceDensity, entries_of, load_record
from taufree.errors import UserError
from taufree.training.config import TrainingConfig
from taufree.training.relaxation import Molecules
from taufree.training.samples import Densities, families_of, scaled_record
from taufree.training.volumes import Curves

READERS = 8
"""Threads that read records; their checksums take as long as all else."""


def load_densities(config: TrainingConfig, split: Split, device: torch.device) -> Densities:
    """Every density of a split on the configured grid levels, with what its tokens see."""
    if not entries_to_read(config, split):
        raise UserError(
            f"{config.data} holds no {split} densities of the kinds to learn; run `taufree data "
            "build` first, or name other kinds in [shares]."
        )
    with stderr.status(f"reading {split} densities"):
        families = (
            family
            for records in _records(config, split)
            for family in families_of(records, config.model, device)
        )
        return Densities(families, config.model.cutoff, device)


def entries_to_read(config: TrainingConfig, split: Split) -> list[Entry]:
    """Finished systems of a split; to train on, those of kinds that have a share."""
    return entries_of(config.data, split, config.kinds if split == "train" else None)


def _records(config: TrainingConfig, split: Split) -> Iterator[list[ReferenceDensity]]:
    """Of each system; to train on, G2 densities once more, uniformly scaled."""
    entries = entries_to_read(config, split)
    for entry, records in zip(entries, _read_ahead(config, entries), strict=True):
        most = config.densities_per_system if split == "train" else 1
        yield choose(records, most, config.seed)
        if split == "train" and "scaled" in config.shares and entry.kind == "g2":
            first = next(r for r in records if r.density_kind == "converged")
            yield [scaled_record(first)]


def choose(records: list[ReferenceDensity], most: int, seed: int) -> list[ReferenceDensity]:
    """The converged density on every grid, and others of the system to make up ``most``."""
    first = [record for record in records if record.density_kind == "converged"]
    others = [record for record in records if record.density_kind != "converged"]
    rng = np.random.default_rng([seed, zlib.crc32(first[0].name.encode())])
    keep = rng.permutation(len(others))[: most - 1]
    return first + [others[k] for k in sorted(keep)]


def _read_ahead(
    config: TrainingConfig, entries: Sequence[Entry]
) -> Iterator[list[ReferenceDensity]]:
    """Records of each entry, in their order; the next ones are read meanwhile."""

    def read(entry: Entry) -> list[ReferenceDensity]:
        return load_record(config.data / entry.file, config.levels, sha256=entry.sha256)

    with ThreadPoolExecutor(READERS) as pool:
        reading: deque[Future[list[ReferenceDensity]]] = deque()
        for entry in entries:
            reading.append(pool.submit(read, entry))
            if len(reading) > READERS:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()


def load_molecules(config: TrainingConfig, split: Split, device: torch.device) -> Molecules | None:
    """Whole molecules and their orbitals; None if the run has no loss on them."""
    if not config.relaxation_weight:
        return None
    level, most_atoms = min(config.levels), config.relaxation_atoms
    kinds = config.kinds if split == "train" else None
    molecules = Molecules(config.data, split, level, config.model.parent, most_atoms, kinds)
    with stderr.status(f"orbitals of {split} molecules"):
        molecules.prepare(device)
    return molecules


def load_curves(config: TrainingConfig, split: Split, device: torch.device) -> Curves | None:
    """Crystals at several volumes; None if the run has no loss on their slopes."""
    if not config.slope_weight:
        return None
    curves = Curves(config.data, split, min(config.levels), config.model, device)
    if split == "train" and not curves:
        raise UserError(f"{config.data} holds no crystal at two volumes; run `taufree data build`.")
    return curves
