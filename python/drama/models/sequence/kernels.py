"""The Triton kernels of `mamba_ssm`, where they can run."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch

Kernels = Literal["portable", "mamba_ssm", "auto"]
Kernel = Callable[..., Any]

INSTALL = (
    "MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE pip install --no-build-isolation --no-deps mamba-ssm einops"
)


def scan_kernel(kernels: Kernels, device: torch.device) -> Kernel | None:
    """`mamba_chunk_scan_combined` if `kernels` allows it and it can run on `device`, or None for the portable path.

    Raises:
        ValueError: if `kernels` is `mamba_ssm` and they cannot run, with what to change.
    """
    if kernels == "portable" or (kernels == "auto" and device.type != "cuda"):
        return None
    if device.type != "cuda":
        raise ValueError(
            f"world_model.sequence.kernels: mamba_ssm needs a CUDA device, the model is on {device}; use auto or"
            " portable"
        )
    try:
        return _load()
    except ImportError as error:
        if kernels == "auto":
            return None
        raise ValueError(
            f"world_model.sequence.kernels: mamba_ssm cannot be imported ({error}); `{INSTALL}` installs it, or use"
            " auto or portable"
        ) from error


def load_module(name: str) -> Any:
    """Import `mamba_ssm.NAME` without what the package's own `__init__` wants: compiled CUDA code for Mamba-1.

    Raises:
        ImportError: if the package, triton or einops is missing.
    """
    if "mamba_ssm" not in sys.modules:
        found = importlib.util.find_spec("mamba_ssm")
        if found is None or found.submodule_search_locations is None:
            raise ImportError("the package is not installed")
        if importlib.util.find_spec("selective_scan_cuda") is None:
            bare = types.ModuleType("mamba_ssm")
            bare.__path__ = list(found.submodule_search_locations)
            bare.__spec__ = found
            sys.modules["mamba_ssm"] = bare
    return importlib.import_module(f"mamba_ssm.{name}")


@functools.cache
def _load() -> Kernel:
    """The kernel, each of its parts with one tiling.

    The package would compile and time up to 18 tilings of each part when it first meets a size: minutes, for a choice
    that matters little at these sizes. In its deterministic mode it takes the smallest.
    """
    try:
        choose = load_module("utils.determinism").set_deterministic_mode
    except (ImportError, AttributeError):  # an older version has no such mode
        choose = None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Deterministic mode")
        if choose is not None:
            choose(True)
        try:
            kernel: Kernel = load_module("ops.triton.ssd_combined").mamba_chunk_scan_combined
        finally:
            if choose is not None:
                choose(None)  # as torch.use_deterministic_algorithms says
    return kernel
