"""A graph of `torch.export`: exchange of spin-unpolarized densities, differentiable by autograd."""

from __future__ import annotations

import io
import json
from typing import Any

import torch
from torch.export import Dim

from taufree.export.dense import DenseExchange
from taufree.functional import Functional

INPUTS = ("rho", "grad_rho", "weights", "coords", "centers")


def pt2(functional: Functional, metadata: dict[str, Any]) -> bytes:
    """What `torch.export.load` reads: `DenseExchange.forward` for any numbers of points and nuclei.

    Its extra file ``metadata`` is JSON.
    """
    points, centers = {0: Dim("n_points")}, {0: Dim("n_centers")}
    with torch.backends.opt_einsum.flags(enabled=False):  # it plans for the sizes of the example
        program = torch.export.export(
            DenseExchange(functional),
            example(),
            dynamic_shapes=(points, points, points, points, centers),
            strict=False,
        )
    file = io.BytesIO()
    extra = {"metadata": json.dumps({"inputs": INPUTS, **metadata})}
    torch.export.save(program, file, extra_files=extra)
    return file.getvalue()


def example() -> tuple[torch.Tensor, ...]:
    """Inputs to follow through the functional once; nothing of them stays in a graph."""
    shapes = (5,), (5, 3), (5,), (5, 3), (3, 3)
    return tuple(torch.rand(*shape, dtype=torch.float64) for shape in shapes)
