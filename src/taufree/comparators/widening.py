"""A wide network that says what a narrow one says, to train on from there.

T. Chen, I. Goodfellow and J. Shlens, Net2Net, arXiv:1511.05641. Every channel becomes several
copies; what reads a channel reads its copies with random shares that sum to 1, by which the copies
then learn different things. LayerNorm sees the same mean and variance. Heads keep their number, so
that a score q·k counts every product several times, and √(its dimension) divides it by too little.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

UNEVEN = 0.5
"""Spread of the logarithms of shares."""


@torch.no_grad()
def widen(narrow: nn.Module, wide: nn.Module) -> None:
    """Give ``wide`` the function of ``narrow``, a network of the same kind with fewer channels.

    Raises
    ------
    ValueError
        A width is no multiple of the narrow one.
    """
    known = dict(narrow.named_parameters())
    for name, parameter in wide.named_parameters():
        values = copies(known[name], parameter.shape)
        if "in_proj" in name:  # queries, keys, values
            times = len(values) // len(known[name])
            values[: len(values) // 3] /= times**0.5
        parameter.copy_(values)


def copies(values: Tensor, shape: torch.Size) -> Tensor:
    """Rows repeated and columns shared out, so that a matrix (or a bias) gets a larger shape."""
    times = [new // old for new, old in zip(shape, values.shape, strict=True)]
    if [old * n for old, n in zip(values.shape, times, strict=True)] != list(shape):
        raise ValueError(f"{list(shape)} is no multiple of {list(values.shape)}")
    values = values.repeat_interleave(times[0], 0)
    if values.dim() == 2:
        shares = (UNEVEN * torch.randn(*values.shape, times[1], dtype=values.dtype)).softmax(2)
        values = (values[:, :, None] * shares).flatten(1)
    return values
