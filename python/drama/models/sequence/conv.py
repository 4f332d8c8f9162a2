"""The causal depthwise convolution of both Mamba generations, cut at episode starts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def causal_conv(conv: nn.Conv1d, x: Tensor, segment: Tensor | None, window: Tensor) -> tuple[Tensor, Tensor]:
    """SiLU of the causal depthwise convolution that sees no input from before the current episode.

    Args:
        conv: holds the weight `[C, 1, K]` and the bias `[C]`.
        x: `[B, T, C]`.
        segment: `[B, T]` episode numbers, 0 for the episode that `window` belongs to, or None.
        window: `[B, K - 1, C]`, the inputs before `x`.

    Returns:
        `[B, T, C]` and the next window.
    """
    out = convolved(x, *_parameters(conv, x.dtype), segment, window)
    return F.silu(out), next_window(x, segment, window, window.shape[1])


def convolved(x: Tensor, weight: Tensor, bias: Tensor, segment: Tensor | None, window: Tensor | None) -> Tensor:
    """`causal_conv` before its SiLU, with the weight `[K, C]`; without a window there is nothing before `x`."""
    length, past = x.shape[1], weight.shape[0] - 1
    head = x.new_zeros(x.shape[0], past, x.shape[2]) if window is None else window.to(x.dtype)
    padded = torch.cat([head, x], dim=1)
    out = x * weight[past] + bias
    segments = None if segment is None else F.pad(segment, (past, 0))
    for begin in range(past):
        taps = weight[begin]
        if segments is not None:
            taps = taps * torch.eq(segments[:, begin : begin + length], segments[:, past:])[..., None]
        out = out + padded[:, begin : begin + length] * taps
    return out


def next_window(x: Tensor, segment: Tensor | None, window: Tensor | None, past: int) -> Tensor:
    """The last `past` inputs of `x[B, T, C]`, after those of `window`, that belong to the last episode; else zeros."""
    last = x[:, max(0, x.shape[1] - past) :]
    missing = past - last.shape[1]
    if missing:
        head = x.new_zeros(x.shape[0], missing, x.shape[2]) if window is None else window[:, -missing:].to(x.dtype)
        last = torch.cat([head, last], dim=1)
    if segment is None:
        return last.clone()
    segments = F.pad(segment, (past, 0))[:, -past:] if past else segment[:, :0]
    return last * (segments == segment[:, -1:])[..., None]


def causal_conv_step(
    conv: nn.Conv1d, x: Tensor, is_first: Tensor | None, window: Tensor, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One token `x[B, C]` of `causal_conv`; returns `[B, C]` and the next window.

    The window goes into `out`, which may be `window`, without gradient; None makes a new tensor.
    """
    if is_first is not None:
        window = window * ~is_first[:, None, None]
    window = window.to(x.dtype)
    weight, bias = _parameters(conv, x.dtype)
    past = window.shape[1]
    y = torch.addcmul(bias, x, weight[past])
    for tap in range(past):
        y.addcmul_(window[:, tap], weight[tap])
    y = F.silu(y)
    if out is None:
        return y, torch.cat([window[:, 1:], x[:, None]], dim=1) if past else window
    for tap in range(past):  # in this order each input is read before it is written over
        out[:, tap] = window[:, tap + 1] if tap + 1 < past else x
    return y, out


def _parameters(conv: nn.Conv1d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    assert conv.bias is not None
    return conv.weight[:, 0].T.to(dtype).contiguous(), conv.bias.to(dtype)
