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

WEIGHTS = "model.safetensors"
VERSION = "1"
DATA = {".json", ".jsonl", ".md", ".txt", ".csv", ".html", ".png", ".svg", ".jpg", ".gif", ".mp4", ".onnx"}
"""What may lie beside the weights: nothing that anybody would run, and no other weights."""


def is_export(run: Path) -> bool:
    """Whether a folder holds weights alone, and nothing to train on with; it may be somebody else's."""
    return (run / WEIGHTS).exists() and not checkpoint.list_checkpoints(run)


def check_contents(folder: Path) -> None:
    """Raise ValueError if a file is no part of an export: such a folder is passed on, and holds data alone."""
    for path in sorted(folder.iterdir()):
        plain = path.name in (WEIGHTS, "LICENSE") or path.name.startswith(".") or path.is_dir()
        if not plain and path.suffix.lower() not in DATA:
            raise ValueError(
                f"{path}: no part of an export, which holds {WEIGHTS}, JSON, text and pictures; remove this file"
            )


def save_weights(folder: Path, learner: Learner, step: int) -> Path:
    """Write the networks of `learner` to `model.safetensors` in `folder`, without what training alone needs.

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
    if (found := metadata.get("format")) != VERSION:
        newer = "; a newer version of drama wrote it" if (found or "").isdecimal() else ""
        raise ValueError(f"{path}: format {found}, this package reads format {VERSION}{newer}")
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
