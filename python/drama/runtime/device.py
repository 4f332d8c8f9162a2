"""Where and in which precision the networks run."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt, from malloc.h: free memory that is kept at the top, and blocks mapped apart."""


def resolve_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means here. Raises ValueError for another, or if it is not there."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: {name!r} is unknown; expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, but torch finds no CUDA device; take cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast: for `auto` bfloat16 on CUDA and on CPUs that multiply it in hardware."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if _cpu_multiplies_bfloat16() else torch.float32


def lowered(precision: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """An autocast context to `precision`. It keeps weights that it has cast only where one around it does so too."""
    if precision == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, precision, cache_enabled=torch.is_autocast_cache_enabled())


@contextmanager
def one_thread() -> Iterator[None]:
    """Work that is too small to share: to wake a second thread for it takes longer, on a busy machine much longer."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def random_from(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers that begin at `seed`; those of torch go on afterwards as if nothing had been."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def keep_freed_memory() -> None:
    """Tell glibc, where it is the C library, to reuse freed memory rather than to give it back to the system.

    An update frees and allocates the same large blocks again and again; giving them back costs a page fault for every
    4 kB of them, a third of the time of a world-model update of `paper` on a CPU. Harmless where it has been done.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)


def _cpu_multiplies_bfloat16() -> bool:
    capabilities: dict[str, Any] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # older torch does not tell: stay with float32
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
