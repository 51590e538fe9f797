"""Densities ready for training: what the tokens see is known, grid points are drawn at random."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taufree.data.store import ReferenceDensity
from taufree.functional import hold
from taufree.model.attention import Bonds, bonds_between, make_bonds
from taufree.model.averages import averaged, fit, normalizer, see_averages, widths
from taufree.model.config import ModelConfig
from taufree.model.network import local_inputs, token_values
from taufree.model.tokens import TokenMap, images
from taufree.physics.descriptors import (
    iso_orbital_indicator,
    lda_exchange,
    reduced_gradient,
)

FACTORS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.25, 1.4, 1.7, 2.0)
"""λ of uniformly scaled densities."""
FAR = 1e4
"""Where the tokens are that fill up a row of a batch (bohr): out of reach."""

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Member:
    """A spin-unpolarized density of a family: a closed shell's, or twice a spin channel's."""

    electrons: float
    moved: float  # ∫|ρ − ρ₀| / N, ρ₀ the family's first density
    seen: Tensor  # (n_tokens, n_features, 2): what the tokens see
    local: Tensor  # (n_points, 4)
    averages: Tensor  # (n_points, N_SEEN), float16: many of them are held in memory
    known: Tensor  # (n_points, 3): p, the LDA's energy per volume, α of the orbitals


@dataclass(frozen=True)
class Family:
    """Densities of one system on one grid, of one spin channel; the converged one is the first.

    ``density`` names the system and grid, and ``share`` is the weight of the energy in that of the
    system (1, or ½ for a spin channel).
    """

    density: str
    kind: str
    share: float
    coords: Tensor  # (n_points, 3), from the first nucleus on
    weights: Tensor  # (n_points,)
    chance: Tensor  # (n_points,): of a point to be drawn
    tokens: Tensor  # (n_images,): which token each image is of
    positions: Tensor  # (n_images, 3)
    bonds: Bonds
    n_tokens: int
    members: list[Member]


def families_of(
    records: Iterable[ReferenceDensity], config: ModelConfig, device: torch.device | str = "cpu"
) -> Iterator[Family]:
    """Families of one system's records: one for each grid level and occupied spin channel.

    What is learned is the exchange of the model's parent at p and α of these orbitals, whatever
    functional made them.
    """
    records = list(records)
    for level in sorted({record.grid_level for record in records}):
        same = [record for record in records if record.grid_level == level]
        same.sort(key=lambda record: record.density_kind != "converged")
        for spin in range(same[0].density.n_spin):
            if same[0].density.rho[spin].any():
                yield _family(same, spin, config, device)


def _family(
    records: list[ReferenceDensity], spin: int, config: ModelConfig, device: torch.device | str
) -> Family:
    first = records[0].density
    coords, centers, weights = (x.to(device) for x in (first.coords, first.centers, first.weights))
    lattice = None if first.lattice is None else first.lattice.to(device)
    tokens, positions = images(centers, lattice, coords, config.cutoff)
    near = torch.stack([(coords - r).norm(dim=1).min() for r in positions]) < config.cutoff
    tokens, positions = tokens[near], positions[near]
    spins = [(r.density.rho[spin], r.density.grad_rho[spin], r.tau[spin]) for r in records]
    rho, grad_rho, tau = (  # of all densities, one after the other
        first.n_spin * torch.cat(field).to(device) for field in zip(*spins, strict=True)
    )
    rho, grad_rho, held = hold(rho, grad_rho)
    electrons = weights.repeat(len(records)) * rho * held
    s = reduced_gradient(rho, grad_rho)
    p, lda = (s * s).sum(1), lda_exchange(rho) * held
    alpha = iso_orbital_indicator(rho, grad_rho.square().sum(1) * held, tau * held)
    known = torch.stack([p, lda, alpha], 1).float().split(len(weights))
    token_map = TokenMap(config, coords, len(centers), tokens, positions)
    shared = normalizer(token_map).repeat(len(records))
    values = torch.cat(token_values(s, electrons, shared).split(len(weights)), 1)
    c = token_map.to_tokens(values).split(3, -1)
    seen = [of_one[..., :2].float() for of_one in c]
    b = widths(rho, s)
    average = torch.cat(
        [
            averaged(token_map, fit(of_one[..., 2:], config), b_of_one)
            for of_one, b_of_one in zip(c, b.split(len(weights)), strict=True)
        ]
    )
    averages = see_averages(average, rho, s, b).half().split(len(weights))
    local = local_inputs(rho, s).float().split(len(weights))
    of_density = electrons.view(len(records), -1)
    counts = of_density.sum(1).tolist()
    moved = ((of_density - of_density[0]).abs().sum(1) / of_density[0].sum()).tolist()
    members = [
        Member(*each) for each in zip(counts, moved, seen, local, averages, known, strict=True)
    ]
    energy = weights * known[0][:, 1]
    # some Lebedev grids have negative weights
    chance = of_density[0].abs() / of_density[0].abs().sum() + energy.abs() / energy.abs().sum()
    record = records[0]
    return Family(
        density=f"{record.name} {record.grid_level}",
        kind=record.kind,
        share=1 / first.n_spin,
        coords=(coords - centers[0]).float(),
        weights=weights,
        chance=chance / 2,
        tokens=tokens,
        positions=(positions - centers[0]).float(),
        bonds=bonds_between(centers, lattice, config.cutoff),
        n_tokens=len(centers),
        members=members,
    )


def scaled_record(record: ReferenceDensity) -> ReferenceDensity:
    """The density ρ_λ(r) = λ³ρ(λr) for one of `FACTORS`, with E_x[ρ_λ] = λE_x[ρ] exactly.

    Its name decides the factor. τ scales with λ⁵, energies per volume with λ⁴; the other fields
    stay behind.
    """
    factor = FACTORS[zlib.crc32(record.name.encode()) % len(FACTORS)]
    return replace(
        record,
        kind="scaled",
        name=f"{record.name} scaled by {factor}",
        density=record.density.scaled(factor),
        tau=record.tau * factor**5,
        exc=record.exc * factor**4,
    )


@dataclass(frozen=True)
class Group:
    """Rows of a batch with about as many tokens (or images) in sight, filled up to one number."""

    points: Tensor  # (n_rows, n_points, 3)
    positions: Tensor  # (n_rows, n_images, 3)
    tokens: Tensor  # (n_rows, n_images)


@dataclass(frozen=True)
class Batch:
    """Points drawn from several densities, a row of equal length for each density.

    ``weights`` are w_j / (n q_j): sums over drawn points with them estimate integrals without bias.
    Rows `base`, `other` are of one family and hold the same points.
    """

    seen: Tensor  # (n_tokens, n_features, 2)
    bonds: Bonds
    groups: list[Group]
    local: Tensor  # (n_rows, n_points, 4)
    averages: Tensor  # (n_rows, n_points, N_SEEN)
    known: Tensor  # (n_rows, n_points, 3), see `Member`
    weights: Tensor  # (n_rows, n_points)
    electrons: Tensor  # (n_rows,)
    base: Tensor  # (n_pairs,)
    other: Tensor  # (n_pairs,)
    moved: Tensor  # (n_pairs,)


class Densities:
    """All families of a data set as a few long tensors on one device, to draw batches from."""

    def __init__(self, families: Iterable[Family], cutoff: float, device: torch.device | str):
        families = list(families)
        members = [m for f in families for m in f.members]
        self.kinds = [f.kind for f in families]
        self.names = [f.density for f in families]
        self.shares = [f.share for f in families]
        self.cutoff = cutoff
        self.device = torch.device(device)
        self.points = _Ranges(len(f.weights) for f in families)
        self.images = _Ranges(len(f.tokens) for f in families)
        self.bond_ranges = _Ranges(len(f.bonds.to) for f in families)
        self.n_tokens = np.array([f.n_tokens for f in families])
        self.member_ranges = _Ranges(len(f.members) for f in families)
        self.token_ranges = _Ranges(len(m.seen) for m in members)
        self.field_ranges = _Ranges(len(m.local) for m in members)
        self.electrons = np.array([m.electrons for m in members])
        self.moved = np.array([m.moved for m in members])
        self.bond_to = self._flat([f.bonds.to for f in families])
        self.bond_source = self._flat([f.bonds.source for f in families])
        self.bond_square = self._flat([f.bonds.squared_distance for f in families])
        # of family k: from k to k + 1, to be searched for k + a random number
        self.cumulative = self._flat(
            [k + (c := f.chance.double().cumsum(0)) / c[-1] for k, f in enumerate(families)]
        )
        of_families = {
            name: [getattr(f, name) for f in families]
            for name in ("coords", "weights", "chance", "tokens", "positions")
        }
        of_members = {
            name: [getattr(m, name) for m in members] for name in ("local", "averages", "known")
        }
        self.seen = self._flat([m.seen for m in members])
        del families, members  # the lists above are the last to hold what fills the memory
        self.coords = self._flat(of_families["coords"])
        self.weights = self._flat(of_families["weights"])
        self.chance = self._flat(of_families["chance"])
        self.tokens = self._flat(of_families["tokens"])
        self.positions = self._flat(of_families["positions"])
        self.local = self._flat(of_members["local"])
        self.averages = self._flat(of_members["averages"])
        self.known = self._flat(of_members["known"])

    def _flat(self, tensors: list[Tensor]) -> Tensor:
        """All in one on the device; each is let go as it is copied, for they fill the memory."""
        shape = sum(map(len, tensors)), *tensors[0].shape[1:]
        flat = torch.empty(shape, dtype=tensors[0].dtype, device=self.device)
        for part in reversed(flat.split([len(t) for t in tensors])):
            part.copy_(tensors.pop())
        return flat

    def __len__(self) -> int:
        return len(self.kinds)

    def draw(self, families: Index, n_points: int, seed: int) -> Batch:
        """``n_points`` of each family, of its first density and of another one if it has any.

        Points with even and with odd index are two independent draws, each stratified: neighbours
        in the grid's order are neighbours in space, so every region gets its share of points.
        """
        rng = np.random.default_rng(seed)
        generator = torch.Generator(self.device).manual_seed(seed)
        start, stop = self.points.bounds(families)
        random = torch.rand(
            len(families), n_points, generator=generator, dtype=torch.float64, device=self.device
        )
        stratum = torch.arange(n_points, device=self.device) // 2
        target = self._to(families)[:, None] + (stratum + random) / (n_points / 2)
        index = torch.searchsorted(self.cumulative, target.flatten()).view_as(target)
        index = torch.clamp(index, self._to(start)[:, None], self._to(stop - 1)[:, None])
        weights = self.weights[index] / (n_points * self.chance[index])
        n_members = self.member_ranges.counts[families]
        pairs = np.flatnonzero(n_members > 1)
        rows = np.concatenate([np.arange(len(families)), pairs])  # the other densities below
        which = np.zeros(len(rows), int)
        which[len(families) :] = rng.integers(1, n_members[pairs])
        below = np.arange(len(families), len(rows))
        return self._batch(
            families[rows], which, index[self._to(rows)], weights[self._to(rows)], pairs, below
        )

    def whole(self, family: int, which: int = 0) -> Batch:
        """All points of one density with their weights."""
        start, stop = self.points.bounds(np.array([family]))
        index = torch.arange(start[0], stop[0], device=self.device)[None]
        none = np.zeros(0, int)
        return self._batch(
            np.array([family]), np.array([which]), index, self.weights[index], none, none
        )

    def _batch(
        self,
        families: Index,
        which: Index,
        index: Tensor,
        weights: Tensor,
        base: Index,
        other: Index,
    ) -> Batch:
        order = np.argsort(self.images.counts[families], kind="stable")
        families, which = families[order], which[order]
        index, weights = index[self._to(order)], weights[self._to(order)]
        place = np.argsort(order)  # where each row has gone
        base, other = place[base], place[other]
        members = self.member_ranges.starts[families] + which
        first_token = np.concatenate([[0], self.n_tokens[families].cumsum()])
        rows, bonds = self.bond_ranges.of(families)
        shift, bond = self._to(first_token[rows]), self._to(bonds)
        from_family = self._to(self.field_ranges.starts[members] - self.points.starts[families])
        field = index + from_family[:, None]
        return Batch(
            seen=self.seen[self._to(self.token_ranges.of(members)[1])],
            bonds=make_bonds(
                self.bond_to[bond] + shift,
                self.bond_source[bond] + shift,
                self.bond_square[bond],
                self.cutoff,
            ),
            groups=list(self._groups(families, first_token, index)),
            local=self.local[field],
            averages=self.averages[field].float(),
            known=self.known[field],
            weights=weights,
            electrons=self._to(self.electrons[members]),
            base=self._to(base),
            other=self._to(other),
            moved=self._to(self.moved[members[other]]),
        )

    def _groups(self, families: Index, first_token: Index, index: Tensor) -> Iterator[Group]:
        """Groups of rows, which are sorted by the number of images in sight."""
        counts = self.images.counts[families]
        size = np.ceil(2 * np.log2(counts)).astype(int)  # within a factor of √2
        edges = np.flatnonzero(np.diff(size, prepend=-1, append=-1))
        for start, stop in itertools.pairwise(edges):
            most = counts[start:stop].max()
            image = self.images.starts[families[start:stop], None] + np.arange(most)
            real = np.arange(most) < counts[start:stop, None]
            images, held = self._to(np.where(real, image, 0)), self._to(real)
            tokens = self.tokens[images] + self._to(first_token[start:stop])[:, None]
            yield Group(
                points=self.coords[index[start:stop]],
                positions=torch.where(held[..., None], self.positions[images], FAR),
                tokens=tokens,
            )

    def _to(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


class _Ranges:
    """Consecutive ranges of given lengths."""

    def __init__(self, counts: Iterable[int]) -> None:
        self.counts: Index = np.array(list(counts), dtype=np.int64)
        self.starts: Index = self.counts.cumsum() - self.counts

    def bounds(self, which: Index) -> tuple[Index, Index]:
        return self.starts[which], self.starts[which] + self.counts[which]

    def of(self, which: Index) -> tuple[Index, Index]:
        """Which choice each index is of, and all indices of the chosen ranges, one by one."""
        counts = self.counts[which]
        rows = np.repeat(np.arange(len(which)), counts)
        within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        return rows, self.starts[which][rows] + within
