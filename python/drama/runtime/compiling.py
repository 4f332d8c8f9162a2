"""Compiled functions on a CPU: `torch.compile`, where it pays and works."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast

import torch

from drama.config import Config

P = ParamSpec("P")
R = TypeVar("R")

PAYS_FROM = 4000
"""Updates from which on `auto` compiles: two minutes of compiling are earned back after about a thousand."""


def wants_compiling(config: Config, device: torch.device) -> bool:
    """Whether `train.compile` asks for it, or (`auto`) whether it pays: a long run on a CPU beside a C++ compiler."""
    train = config.train
    if train.compile != "auto":
        return train.compile == "on"
    updates = (config.steps - train.start_step) // train.train_every
    compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    return device.type == "cpu" and sys.platform == "linux" and compiler and updates >= PAYS_FROM


Function = TypeVar("Function", bound=Callable[..., Any])


class Compile(Protocol):
    """Makes a faster function of another."""

    def __call__(self, function: Function, /) -> Function: ...


class Compiled(Generic[P, R]):
    """What `make` builds from compiled parts; where compiling fails, this warns once and is of plain parts from then.

    `make(c)` returns the function that is called; what it wraps by `c(function)` is compiled at its first call. It
    draws the same random numbers as the plain one; its values differ in the last bits.
    """

    def __init__(self, name: str, make: Callable[[Compile], Callable[P, R]]) -> None:
        self._name = name
        self._plain = make(lambda function: function)
        self._compiled: Callable[P, R] | None = make(_compile)

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


def _compile(function: Function) -> Function:
    # One compiler process: a pool of them would outlive a run that is stopped. Files go to torch's cache on disk.
    options: dict[str, str | int | bool | Callable[..., Any]] = {"fallback_random": True, "compile_threads": 1}
    # What is cheap is computed again where it is used: to write it to memory and read it back takes longer.
    options |= {"realize_opcount_threshold": 60, "realize_reads_threshold": 10}
    return cast("Function", torch.compile(function, dynamic=False, options=options))
