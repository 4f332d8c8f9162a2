"""Weights of a trained run as safetensors: what is committed, shared, and read back without running code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from drama.config import Config
from drama.files import WEIGHTS
from drama.interface import Interface
from drama.runtime.device import random_from
from drama.training import checkpoint
from drama.training.learner import Learner, first_misfit

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


def blank_learner(config: Config, interface: Interface) -> Learner:
    """The networks of a config with shapes and no values: nothing is allocated for them.

    Raises ValueError if there are no such networks.
    """
    try:
        with torch.device("meta"):
            return Learner(config, interface, torch.device("meta"))
    except RuntimeError as error:  # more than can be counted
        raise ValueError(f"the config has sizes that no network can have ({error})") from error


def shapes_of(config: Config, interface: Interface) -> dict[str, list[int]]:
    """The shape of each weight that a config makes, by name."""
    learner = blank_learner(config, interface)
    return {
        f"{name}.{key}": list(value.shape)
        for name, network in (("world_model", learner.world_model), ("agent", learner.agent))
        for key, value in network.state_dict().items()
    }


def check_fits(config: Config, interface: Interface, found: Mapping[str, Sequence[int]], path: Path) -> None:
    """Raise ValueError that names the first weight whose shape in `path` is not that of the config's networks.

    The config may be somebody else's, and ask for more than there is: nothing is allocated before.
    """
    if misfit := first_misfit(found, shapes_of(config, interface)):
        name, shape, wanted = misfit
        raise ValueError(f"{path}: {name} is {shape}, and {wanted} with the config beside it")


def check_state(config: Config, interface: Interface, state: Mapping[str, Any], path: Path) -> None:
    """`check_fits` for what a checkpoint's file `path` holds."""
    networks = state["learner"] if isinstance(state["learner"], dict) else {}
    found = {
        f"{name}.{key}": value.shape
        for name in ("world_model", "agent")
        if isinstance(networks.get(name), dict)
        for key, value in networks[name].items()
        if isinstance(value, Tensor)
    }
    check_fits(config, interface, found, path)


def load_weights(folder: Path, config: Config, interface: Interface, device: torch.device) -> tuple[Learner, int]:
    """Networks with what `save_weights` wrote, and the step of the training.

    Raises ValueError if the file is damaged, of a newer version, or does not fit the config.
    """
    path = folder / WEIGHTS
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            shapes = {name: file.get_slice(name).get_shape() for name in names}
        step = int(metadata.get("step", "0"))
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: damaged, or no safetensors file ({error})") from error
    if (found := metadata.get("format")) != VERSION:
        newer = "; a newer version of drama wrote it" if (found or "").isdecimal() else ""
        raise ValueError(f"{path}: format {found}, this package reads format {VERSION}{newer}")
    check_fits(config, interface, shapes, path)
    with random_from(0, device):  # its first weights are nobody's random numbers
        learner = Learner(config, interface, device)
    with safe_open(path, "pt", device=str(device)) as file:
        for name, network in (("world_model", learner.world_model), ("agent", learner.agent)):
            wanted = network.state_dict()
            network.load_state_dict({k: file.get_tensor(f"{name}.{k}").to(wanted[k].dtype) for k in wanted})
    return learner, step
