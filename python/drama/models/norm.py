"""Norms: RMS norms that compute in the precision of their weights, also under autocast, and batch norm's statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5


class RMSNorm(nn.RMSNorm):
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class GatedRMSNorm(nn.Module):
    """RMS norm of `y * silu(gate)` within each of `groups` equal parts; `norm_before_gate=False` in Mamba-2's terms."""

    def __init__(self, width: int, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:
        parts = (y * F.silu(gate)).to(self.weight.dtype).unflatten(-1, (self.groups, -1))
        return F.rms_norm(parts, parts.shape[-1:], None, EPS).flatten(-2) * self.weight


def batch_norms(module: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
    """The batch norms in `module`."""
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]


@contextmanager
def fresh_statistics(module: nn.Module) -> Iterator[None]:
    """Let the batch norms of a module in evaluation mode take their statistics from what they are given, for good."""
    norms = batch_norms(module)
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.training, norm.momentum = True, 1.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.training, norm.momentum = False, momentum


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Let the batch norms of a module in evaluation mode use the statistics of what they are given, and keep none."""
    norms = batch_norms(module)
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm in norms:
            norm.training, norm.track_running_stats = False, True
