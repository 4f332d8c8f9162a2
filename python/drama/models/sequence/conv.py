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
    length, past = x.shape[1], window.shape[1]
    weight, bias = _parameters(conv, x.dtype)
    padded = torch.cat([window.to(x.dtype), x], dim=1)
    out = x * weight[past] + bias
    if segment is None:
        for begin in range(past):
            out = out + padded[:, begin : begin + length] * weight[begin]
        return F.silu(out), padded[:, length:]
    segments = F.pad(segment, (past, 0))
    for begin in range(past):
        same = (segments[:, begin : begin + length] == segment)[..., None]
        out = out + padded[:, begin : begin + length] * (weight[begin] * same)
    kept = segments[:, length:] == segments[:, -1:]
    return F.silu(out), padded[:, length:] * kept[..., None]


def causal_conv_step(conv: nn.Conv1d, x: Tensor, is_first: Tensor | None, window: Tensor) -> tuple[Tensor, Tensor]:
    """One token `x[B, C]` of `causal_conv`; returns `[B, C]` and the next window."""
    if is_first is not None:
        window = window * ~is_first[:, None, None]
    weight, bias = _parameters(conv, x.dtype)
    inputs = torch.cat([window.to(x.dtype), x[:, None]], dim=1)
    return F.silu((inputs * weight).sum(1) + bias), inputs[:, 1:]


def _parameters(conv: nn.Conv1d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    assert conv.bias is not None
    return conv.weight[:, 0].T.to(dtype), conv.bias.to(dtype)
