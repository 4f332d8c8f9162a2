"""Multilayer perceptrons and the two-hot representation of scalars."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drama.models.norm import RMSNorm


def mlp(inputs: int, units: int, layers: int, outputs: int, *, output_scale: float = 1.0) -> nn.Sequential:
    """`layers` of linear, RMS norm, SiLU, then a linear output whose initial weights are scaled by `output_scale`."""
    modules: list[nn.Module] = []
    for i in range(layers):
        modules += [nn.Linear(inputs if i == 0 else units, units, bias=False), RMSNorm(units), nn.SiLU()]
    last = nn.Linear(units, outputs)
    with torch.no_grad():
        last.weight.mul_(output_scale)
        last.bias.zero_()
    return nn.Sequential(*modules, last)


def symlog(x: Tensor) -> Tensor:
    """`sign(x) ln(1 + |x|)`."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


class TwoHot(nn.Module):
    """Scalars as a categorical over `bins` equal steps of symlog space in `[-limit, limit]` (arXiv 2301.04104).

    A scalar is the two neighbouring bins weighted by nearness; values beyond the limits go to the outermost bins. With
    `mean="symlog"` nearness and means are those of symlog space, which shrinks what is rare: a mixture of 0 and 1 is
    read as less than its mean. With `mean="raw"` they are those of the scalars themselves.
    """

    bins: Tensor
    values: Tensor

    def __init__(self, bins: int, limit: float, mean: Literal["symlog", "raw"] = "symlog") -> None:
        super().__init__()
        if bins < 2:
            raise ValueError(f"bins: {bins} is fewer than 2")
        self.raw = mean == "raw"
        self.register_buffer("bins", torch.linspace(-limit, limit, bins), persistent=False)
        self.register_buffer("values", symexp(self.bins), persistent=False)

    def encode(self, value: Tensor) -> Tensor:
        """Scalars `[...]` to two-hot weights `[..., bins]` that sum to one."""
        count = self.bins.shape[0]
        low, high = self.bins[0], self.bins[-1]
        position = (symlog(value.float()) - low) / (high - low) * (count - 1)
        position = position.clamp(0, count - 1)
        # A value that is not a number becomes weights that are none: the index must stay in range for them to show it.
        below = position.nan_to_num().floor().clamp(max=count - 2).long()
        upper = (position - below)[..., None]
        if self.raw:
            lower = self.values[below]
            upper = ((value.float() - lower) / (self.values[below + 1] - lower))[..., None].clamp(0, 1)
        weights = torch.zeros(*value.shape, count, device=value.device)
        weights.scatter_(-1, below[..., None], 1 - upper)
        return weights.scatter_(-1, below[..., None] + 1, upper)

    def decode(self, logits: Tensor) -> Tensor:
        """The expected scalar `[...]` of `[..., bins]` logits."""
        probs = F.softmax(logits.float(), dim=-1)
        if not self.raw:
            return symexp((probs * self.bins).sum(-1))
        # Opposite bins first: of two huge values with equal probabilities nothing must be left.
        half = self.values.shape[0] // 2
        return ((probs - probs.flip(-1))[..., half:] * self.values[half:]).sum(-1)

    def loss(self, logits: Tensor, value: Tensor) -> Tensor:
        """Cross-entropy `[...]` of `[..., bins]` logits to the scalars `[...]`, in nats."""
        return -(self.encode(value) * F.log_softmax(logits.float(), dim=-1)).sum(-1)
