"""RMS norms that compute in the precision of their weights, also under autocast."""

from __future__ import annotations

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
