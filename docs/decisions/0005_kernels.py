"""What the compiled kernels win: both sums over pairs of points and tokens, in three forms.

Benzene, def2-SVP's density on grid level 3, the bundled network in float32; the forms run in turn.
``torch.compile`` needs a C++ compiler.
Run: python docs/decisions/0005_kernels.py [REPEATS]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from unittest.mock import patch

import torch
from pyscf import dft, gto

import taufree
from taufree.evaluation.speed.systems import benzene
from taufree.model import tokens

COMPILED = torch.compile(tokens.gaussian_features, dynamic=True)


@contextmanager
def form(name: str) -> Iterator[None]:
    """Let a `TokenMap` use one form of its sums."""
    with patch.object(tokens.TokenMap, "compiled", name == "numba"):
        if name == "torch.compile":
            with patch.object(tokens, "gaussian_features", COMPILED):
                yield
        else:
            yield


@torch.no_grad()
def main() -> None:
    """Print medians of both sums."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    atoms = benzene()
    mol = gto.M(atom=[(a.symbol, a.position) for a in atoms], basis="def2-svp", verbose=0)
    grids = dft.gen_grid.Grids(mol).build()
    functional = taufree.load_model("ms2")
    config = functional.network.config
    coords, centers = torch.from_numpy(grids.coords), torch.from_numpy(mol.atom_coords())
    token_map = functional.geometry(coords, centers).token_map
    torch.manual_seed(0)
    x = torch.randn(len(coords), 3)
    z = torch.randn(len(centers), config.n_features, config.n_read)
    y = torch.randn(len(centers), config.n_tensor_features, config.n_directed)
    sums = {
        "points to tokens": lambda: token_map.to_tokens(x),
        "tokens to points": lambda: token_map.to_points(z, y),
    }
    names = ("numba", "PyTorch", "torch.compile")
    seconds: dict[tuple[str, str], list[float]] = {}
    for repeat in range(repeats + 1):  # the first warms up
        for name in names:
            for what, call in sums.items():
                with form(name):
                    start = time.perf_counter()
                    call()
                if repeat:
                    seconds.setdefault((name, what), []).append(time.perf_counter() - start)
    print(f"{len(coords)} points, {len(token_map.tile)} pairs of a tile and a token")
    for (name, what), times in seconds.items():
        print(f"{name:14} {what}: {median(times):.3f} s ({min(times):.3f} to {max(times):.3f})")


if __name__ == "__main__":
    main()
