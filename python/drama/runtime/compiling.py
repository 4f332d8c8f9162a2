"""Compiled functions on a CPU: `torch.compile`, where it pays and works."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch

from drama.config import Config

P = ParamSpec("P")
R = TypeVar("R")

PAYS_FROM = 4000
"""Updates from which on `auto` compiles: half a minute of compiling is earned back after about a thousand."""


def wants_compiling(config: Config, device: torch.device) -> bool:
    """Whether `train.compile` asks for it, or (`auto`) whether it pays: a long run on a CPU beside a C++ compiler."""
    train = config.train
    if train.compile != "auto":
        return train.compile == "on"
    updates = (config.steps - train.start_step) // train.train_every
    compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    return device.type == "cpu" and sys.platform == "linux" and compiler and updates >= PAYS_FROM


class Compiled(Generic[P, R]):
    """`function` compiled at its first call; where that fails, this warns once and is the plain function from then on.

    It draws the same random numbers as the plain one; its values differ in the last bits.
    """

    def __init__(self, name: str, function: Callable[P, R]) -> None:
        self._name = name
        self._plain = function
        # One compiler process: a pool of them would outlive a run that is stopped. Files go to torch's cache on disk.
        options: dict[str, str | int | bool | Callable[..., Any]] = {"fallback_random": True, "compile_threads": 1}
        self._compiled: Callable[P, R] | None = torch.compile(function, dynamic=False, options=options)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._compiled is not None:
            try:
                return self._compiled(*args, **kwargs)
            except Exception as error:  # whatever the compilers of this machine raise
                reason = str(error).strip().partition("\n")[0]
                warnings.warn(
                    f"train.compile: the {self._name} does not compile ({reason}); going on without it", stacklevel=2
                )
                self._compiled = None
        return self._plain(*args, **kwargs)
