"""Where and in which precision the networks run."""

from __future__ import annotations

from typing import Any

import torch

from drama.config import Config


def resolve_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means here. Raises ValueError if it is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, but torch finds no CUDA device; use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast: for `auto` bfloat16 on CUDA and on CPUs that multiply it in hardware."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if _cpu_multiplies_bfloat16() else torch.float32


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """The autocast context of a run; it does nothing for float32."""
    dtype = resolve_precision(config.train.precision, device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def _cpu_multiplies_bfloat16() -> bool:
    capabilities: dict[str, Any] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # older torch does not tell: stay with float32
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
