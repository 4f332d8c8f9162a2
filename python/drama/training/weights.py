"""Weights of a trained run as safetensors: what is committed, shared, and read back without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from drama.training import checkpoint
from drama.training.learner import Learner

WEIGHTS = "weights.safetensors"
VERSION = "1"


def is_export(run: Path) -> bool:
    """Whether a folder holds weights alone, and nothing to train on with; it may be somebody else's."""
    return (run / WEIGHTS).exists() and not checkpoint.list_checkpoints(run)


def save_weights(folder: Path, learner: Learner, step: int) -> Path:
    """Write the networks of `learner` to `weights.safetensors` in `folder`, without what training alone needs.

    Parameters are in half precision, statistics in full.
    """
    halves = {id(parameter) for network in (learner.world_model, learner.agent) for parameter in network.parameters()}
    tensors: dict[str, Tensor] = {}
    for name, network in (("world_model", learner.world_model), ("agent", learner.agent)):
        for key, value in network.state_dict(keep_vars=True).items():
            half = id(value) in halves
            tensors[f"{name}.{key}"] = value.detach().cpu().to(torch.float16 if half else value.dtype).contiguous()
    path = folder / WEIGHTS
    path.write_bytes(save(tensors, {"format": VERSION, "step": str(step)}))
    return path


def load_weights(folder: Path, learner: Learner) -> int:
    """Read what `save_weights` wrote into `learner`; gives the step of the training.

    Raises ValueError if the file is damaged, of a newer version, or does not fit the config.
    """
    path = folder / WEIGHTS
    try:
        with safe_open(path, "pt", device=str(learner.device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step = int(metadata.get("step", "0"))
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: damaged, or no safetensors file ({error})") from error
    if metadata.get("format") != VERSION:
        raise ValueError(f"{path}: format {metadata.get('format')}, this package reads format {VERSION}")
    for name, network in (("world_model", learner.world_model), ("agent", learner.agent)):
        state: dict[str, Any] = {
            key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")
        }
        wanted = network.state_dict()
        for key in sorted(wanted.keys() | state.keys()):
            found, expected = (list(t[key].shape) if key in t else "none" for t in (state, wanted))
            if found != expected:
                raise ValueError(f"{path}: {name}.{key} is {found}, and {expected} with the config beside it")
        network.load_state_dict({key: value.to(wanted[key].dtype) for key, value in state.items()})
    return step
