"""State of a training run as safetensors: parameters, optimizers, step. No pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from taufree.errors import UserError
from taufree.files import write_atomic


def save_checkpoint(
    path: Path, network: nn.Module, optimizers: list[Optimizer], state: dict[str, Any]
) -> None:
    """Write everything that the next step depends on, whole or not at all."""
    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    for i, optimizer in enumerate(optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                tensors[f"optimizer.{i}.{index}.{key}"] = torch.as_tensor(value)
    contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomic(path, save(contiguous, metadata={"state": json.dumps(state)}))


def load_checkpoint(path: Path, network: nn.Module, optimizers: list[Optimizer]) -> dict[str, Any]:
    """Put a run back where `save_checkpoint` left it; returns ``state``.

    Raises
    ------
    UserError
        If the file is damaged or belongs to another architecture.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}
            state: dict[str, Any] = json.loads(file.metadata()["state"])
        parameters = {
            k.removeprefix("network."): v for k, v in tensors.items() if k[:8] == "network."
        }
        network.load_state_dict(parameters)
    except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is damaged or of another architecture; remove it to start anew."
        ) from error
    for i, optimizer in enumerate(optimizers):
        values: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimizer.{i}."):
                _, _, index, key = name.split(".")
                values.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": values})
    return state
