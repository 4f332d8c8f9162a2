"""Runs `mamba_ssm`'s own Triton kernels on the CPU, by Triton's interpreter, and compares the layer with itself.

A script: the interpreter is chosen when Triton is imported, so it wants a process of its own; test_sequence_kernels.py
starts it.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock, patch

import torch
from torch import Tensor
from triton.runtime.autotuner import Autotuner  # type: ignore[import-untyped]

from drama.models.sequence import kernels, mamba2
from drama.models.sequence.mamba2 import Mamba2


def load() -> Callable[..., Any]:
    """The kernel; each part of it must have one tiling, as to choose among several is to time them on a GPU."""
    kernel = kernels._load()
    modules = [module for name, module in sys.modules.items() if name.startswith("mamba_ssm.ops.triton.ssd")]
    parts = [v for module in modules for v in vars(module).values() if isinstance(v, Autotuner)]
    assert len(parts) > 10
    assert all(len(part.configs) == 1 for part in parts)
    return kernel


def values_and_gradients(layer: Mamba2, length: int, starts: tuple[int, ...], carried: bool) -> list[Tensor]:
    torch.manual_seed(1)
    x = torch.randn(2, length, layer.in_proj.in_features, requires_grad=True)
    is_first = torch.zeros(2, length, dtype=torch.bool)
    is_first[0, list(starts)] = True
    before = mamba2.Mamba2State(*(torch.randn_like(t, requires_grad=True) for t in layer.initial_state(2)))
    y, after = layer(x, is_first if starts else None, before if carried else None)
    weighted = sum((t * torch.randn_like(t)).sum() for t in (y, *after))
    assert isinstance(weighted, Tensor)
    wanted = [x, *(before if carried else ()), *layer.parameters()]
    return [y, *after, *torch.autograd.grad(weighted, wanted)]


# The first two ask for a GPU around the kernels, which themselves need none here.
@patch("torch.cuda.device")
@patch("torch.cuda.get_device_properties", return_value=types.SimpleNamespace(multi_processor_count=2))
@patch.object(mamba2, "scan_kernel")
def main(scan_kernel: Mock, *_: Mock) -> None:
    kernel = load()
    worst = 0.0
    for groups, state, length, starts, carried in [
        (1, 16, 40, (), False),
        (2, 16, 33, (0, 20), True),
        (1, 8, 5, (3,), True),
        (1, 32, 32, (16,), False),
        (1, 16, 1, (), True),
    ]:
        torch.manual_seed(0)
        layer = Mamba2(48, d_state=state, headdim=24, ngroups=groups, chunk_size=16, kernels="mamba_ssm")
        case = layer, length, starts, carried
        scan_kernel.return_value = kernel
        found = values_and_gradients(*case)
        scan_kernel.return_value = None
        for left, right in zip(found, values_and_gradients(*case), strict=True):
            torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)
            worst = max(worst, ((left - right).abs().max() / right.abs().max()).item())
    print(f"largest difference: {worst:.1e} of the largest value")
    layer.kernels = "auto"
    scan_kernel.return_value = kernel
    layer(torch.zeros(1, 1, 48))
    assert layer._trusted == {torch.device("cpu"): True}


if __name__ == "__main__":
    main()
