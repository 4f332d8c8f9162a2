"""The recurrence against `mamba_ssm`: its pure-PyTorch references, and its kernels, interpreted or on CUDA."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from drama.models.sequence import kernels, mamba2
from drama.models.sequence.mamba import Mamba
from drama.models.sequence.mamba2 import Mamba2

WIDTH = 32

REFERENCE = Path(sys.prefix, "reference")
"""Where `make` installs `mamba_ssm`: apart, as `transformers` would take its presence for CUDA's."""


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Imports modules of `mamba_ssm` and forgets them again."""
    # The compiled extension is never called.
    monkeypatch.syspath_prepend(str(REFERENCE))
    before = set(sys.modules)

    def load(name: str) -> Any:
        try:
            kernels.load_module("utils")
            monkeypatch.setitem(sys.modules, "selective_scan_cuda", types.ModuleType("selective_scan_cuda"))
            return kernels.load_module(name)
        except ImportError as error:
            pytest.skip(f"mamba_ssm: {error}")

    yield load
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("mamba_ssm", "einops"):
            del sys.modules[name]


def compare(ours: torch.nn.Module, expected: Tensor, x: Tensor, y: Tensor) -> None:
    """Values, then gradients of the input and every parameter."""
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-3)
    weight = torch.randn_like(y)
    wanted = [x, *ours.parameters()]
    found, references = (torch.autograd.grad((v * weight).sum(), wanted) for v in (y, expected))
    for left, right in zip(found, references, strict=True):
        torch.testing.assert_close(left, right, atol=2e-3, rtol=1e-3)


def convolve(layer: Any, x: Tensor) -> Tensor:
    """The causal convolution as PyTorch has it."""
    padded = F.pad(x.mT, (layer.d_conv - 1, 0))
    return F.silu(F.conv1d(padded, layer.conv1d.weight, layer.conv1d.bias, groups=x.shape[-1]).mT)


@pytest.mark.parametrize("length", [8, 16, 24])
@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2_equals_the_reference_of_mamba_ssm(length: int, groups: int, reference: Callable[[str], Any]) -> None:
    scan = reference("ops.triton.ssd_combined")
    norm = reference("ops.triton.layernorm_gated")
    torch.manual_seed(0)
    layer = Mamba2(WIDTH, d_state=8, headdim=16, ngroups=groups, chunk_size=5)
    x = torch.randn(2, length, WIDTH, requires_grad=True)
    gate, xbc, dt = layer._split(layer.in_proj(x))
    u, b, c = convolve(layer, xbc).split([layer.d_inner, groups * 8, groups * 8], dim=-1)
    y = scan.ssd_chunk_scan_combined_ref(
        u.unflatten(-1, (layer.nheads, 16)), dt, -torch.exp(layer.A_log), b.unflatten(-1, (groups, 8)),
        c.unflatten(-1, (groups, 8)), 8, D=layer.D, dt_bias=layer.dt_bias, dt_softplus=True,
    )  # fmt: skip
    width = layer.d_inner // groups
    normed = norm.rms_norm_ref(
        y.flatten(2), layer.norm.weight, None, z=gate, eps=1e-5, group_size=width, norm_before_gate=False
    )
    compare(layer, layer.out_proj(normed), x, layer(x)[0])


@pytest.mark.parametrize("length", [1, 7, 16])
def test_mamba_equals_the_reference_of_mamba_ssm(length: int, reference: Callable[[str], Any]) -> None:
    scan = reference("ops.selective_scan_interface")
    torch.manual_seed(0)
    layer = Mamba(WIDTH, d_state=8)
    x = torch.randn(2, length, WIDTH, requires_grad=True)
    u, gate = layer.in_proj(x).chunk(2, dim=-1)
    u = convolve(layer, u)
    dt, b, c = layer.x_proj(u).split([layer.dt_rank, 8, 8], dim=-1)
    y = scan.selective_scan_ref(
        u.mT, (dt @ layer.dt_proj.weight.T).mT, -torch.exp(layer.A_log), b.mT, c.mT, layer.D, z=gate.mT,
        delta_bias=layer.dt_proj.bias, delta_softplus=True,
    )  # fmt: skip
    compare(layer, layer.out_proj(y.mT), x, layer(x)[0])


def test_kernels_asked_for_on_a_cpu_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sequence\.kernels: mamba_ssm needs a CUDA device.*auto or portable"):
        Mamba2(WIDTH, headdim=16, kernels="mamba_ssm")(torch.zeros(1, 2, WIDTH))


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(not (REFERENCE.exists() and find_spec("triton")), reason="mamba_ssm or triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there they run as they are")
def test_interpreted_kernels_equal_the_portable_path() -> None:
    script = Path(__file__).with_name("interpreted_kernels.py")
    path = os.pathsep.join([str(REFERENCE), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, script], check=True, env=environment, timeout=300)


def scan_step_by_step(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, *, D: Tensor, dt_bias: Tensor, seq_idx: Tensor, **_: Any
) -> tuple[Tensor, Tensor]:
    """What `mamba_chunk_scan_combined` computes, for one group and no state before."""
    dt = F.softplus(dt + dt_bias)
    h = x.new_zeros(*x[:, 0].shape, b.shape[-1])
    outputs = []
    for t in range(x.shape[1]):
        kept = (seq_idx[:, t] == (seq_idx[:, t - 1] if t else 0)).to(x.dtype)
        decay = torch.exp(dt[:, t] * a) * kept[:, None]
        h = decay[..., None, None] * h + (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None]
        outputs.append((h * c[:, t, :, None]).sum(-1) + D[:, None] * x[:, t])
    return torch.stack(outputs, dim=1), h


def scan_without_resets(*args: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
    return scan_step_by_step(*args, **kwargs | {"seq_idx": torch.zeros_like(kwargs["seq_idx"])})


def scan_without_gradient(x: Tensor, *args: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
    return scan_step_by_step(x.detach(), *args, **kwargs)


@pytest.mark.parametrize(
    ("scan", "warning"),
    [
        (scan_step_by_step, None),
        (
            scan_without_resets,
            r"kernels: mamba_ssm's on cpu differ from PyTorch by \d.* of the largest value",
        ),
        (scan_without_gradient, r"on cpu differ from PyTorch"),
        (RuntimeError("another card"), r"on cpu fail \(another card\): portable it is"),
    ],
)
def test_auto_takes_kernels_that_agree_and_no_others(
    scan: Any, warning: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Mock(side_effect=scan)
    monkeypatch.setattr(mamba2, "scan_kernel", Mock(return_value=kernel))
    layer = Mamba2(WIDTH, d_state=8, headdim=16, chunk_size=4)
    x = torch.randn(2, 6, WIDTH)
    is_first = torch.zeros(2, 6, dtype=torch.bool)
    is_first[1, 2] = True
    with contextlib.nullcontext() if warning is None else pytest.warns(UserWarning, match=warning):
        y, _ = layer(x, is_first)
    layer(x, is_first)  # decided already: no second trial
    assert kernel.call_count == (3 if warning is None else 1)
    torch.testing.assert_close(y, layer._evaluate(None, x, is_first, None)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("starts", [(), (0,), (5, 40), (32,)])
def test_kernels_equal_the_portable_path(starts: tuple[int, ...], reference: Callable[[str], Any]) -> None:
    reference("ops.triton.ssd_combined")
    torch.manual_seed(0)
    layer = Mamba2(64, d_state=16, headdim=32, kernels="mamba_ssm").cuda()
    x = torch.randn(2, 64, 64, device="cuda", requires_grad=True)
    is_first = torch.zeros(2, 64, dtype=torch.bool, device="cuda")
    is_first[0, list(starts)] = True
    _, state = layer(torch.randn(2, 9, 64, device="cuda"))
    y, after = layer(x, is_first, state)
    layer.kernels = "portable"
    expected, expected_after = layer(x, is_first, state)
    torch.testing.assert_close(after.ssm, expected_after.ssm, atol=1e-2, rtol=1e-2)
    compare(layer, expected, x, y)


def test_bad_input_is_named() -> None:
    layer = Mamba2(WIDTH, headdim=16)
    x = torch.zeros(2, 3, WIDTH)
    with pytest.raises(ValueError, match=r"d_state: 0 must be at least 1"):
        Mamba2(WIDTH, d_state=0, headdim=16)
    with pytest.raises(ValueError, match=r"x: expected \[B, T >= 1, 32\], found \[2, 3, 5\]"):
        layer(x[..., :5])
    with pytest.raises(ValueError, match=r"x: expected a floating dtype, found torch.int64"):
        layer(x.long())
    with pytest.raises(ValueError, match=r"x: is on meta, the model on cpu"):
        layer(x.to("meta"))
    with pytest.raises(ValueError, match=r"is_first: expected bool \[2, 3\], found torch.bool \[3, 2\]"):
        layer(x, torch.zeros(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"state.conv: expected \[2, 3, 96\], found \[4, 3, 96\]"):
        layer(x, None, layer.initial_state(4))
    with pytest.raises(ValueError, match=r"state.conv: .*another backend"):
        layer(x, None, Mamba(WIDTH).initial_state(2))
