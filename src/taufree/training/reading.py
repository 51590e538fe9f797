"""What drawn points read of the tokens, in large matrix products over rows of equal length."""

from __future__ import annotations

import torch
from torch import Tensor

from taufree.model.config import ModelConfig
from taufree.model.tokens import gaussian_features
from taufree.training.samples import Group


def read(groups: list[Group], z: Tensor, y: Tensor, config: ModelConfig) -> Tensor:
    """f = Φ (z, y) as `taufree.model.tokens.TokenMap.to_points`, (n_rows, n_points, n_values)."""
    return torch.cat([_read(group, z, y, config) for group in groups])


def _read(group: Group, z: Tensor, y: Tensor, config: ModelConfig) -> Tensor:
    n_rows, n_images = group.tokens.shape
    n0, *higher = config.n_radial
    r = group.points[:, None] - group.positions[:, :, None]  # (n_rows, n_images, n_points, 3)
    phi = gaussian_features(r.flatten(0, 1).mT, config).unflatten(0, (n_rows, n_images))
    tokens = group.tokens.flatten()
    scalars = z.index_select(0, tokens).view(n_rows, -1, z.shape[2])
    parts = [phi.flatten(1, 2).mT @ scalars]
    answers = y.index_select(0, tokens).unflatten(0, (n_rows, n_images)).split(higher, 2)
    start = n0
    for l, (n, tensors) in enumerate(zip(higher, answers, strict=True), 1):
        stop = start + n * (2 * l + 1)
        # (n_rows, 2l + 1, n_points, n_images, n)
        sharp = phi[:, :, start:stop].unflatten(2, (n, 2 * l + 1)).permute(0, 3, 4, 1, 2)
        out = sharp.flatten(3, 4) @ tensors.flatten(1, 2)[:, None]
        parts.append(out.transpose(1, 2).flatten(2, 3))
        start = stop
    return torch.cat(parts, 2)
