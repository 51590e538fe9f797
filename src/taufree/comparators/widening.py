"""A wide network that says what a narrow one says, to train on from there.

T. Chen, I. Goodfellow and J. Shlens, Net2Net, arXiv:1511.05641. Every channel becomes several
copies; what reads a channel reads its copies with random shares that sum to 1, by which the copies
then learn different things. Where all have as many copies LayerNorm sees the same mean and
variance, else nearly the same. Heads keep their number, so that a score q·k counts every product
several times, and √(its dimension) divides it by too little.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

UNEVEN = 0.5
"""Spread of the logarithms of shares."""


@torch.no_grad()
def widen(narrow: nn.Module, wide: nn.Module) -> None:
    """Give ``wide`` the function of ``narrow``, a network of the same kind with fewer channels.

    Exactly, if its width is a multiple of the narrow one.

    Raises
    ------
    ValueError
        It has fewer channels.
    """
    known = dict(narrow.named_parameters())
    for name, parameter in wide.named_parameters():
        values = copies(known[name], parameter.shape)
        if "in_proj" in name:  # queries, keys, values
            times = len(values) / len(known[name])
            values[: len(values) // 3] /= times**0.5
        parameter.copy_(values)


def copies(values: Tensor, shape: torch.Size) -> Tensor:
    """Rows repeated and columns shared out, so that a matrix (or a bias) gets a larger shape."""
    if any(new < old for new, old in zip(shape, values.shape, strict=True)):
        raise ValueError(f"{list(shape)} is smaller than {list(values.shape)}")
    row, *column = (
        torch.arange(new) * old // new for new, old in zip(shape, values.shape, strict=True)
    )
    values = values[row]
    for k in column:
        shares = (UNEVEN * torch.randn(len(values), len(k), dtype=values.dtype)).exp()
        total = torch.zeros_like(values).index_add_(1, k, shares)
        values = values[:, k] * shares / total[:, k]
    return values
