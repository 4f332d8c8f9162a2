"""Running statistics, kept in buffers so that a checkpoint holds them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningNorm(nn.Module):
    """Normalises features by their running mean and variance, clipped.

    The statistics cover all that `update` has seen (parallel variance of Chan et al., 1979); they change only there,
    never in `forward`.

    Args:
        features: width of the last axis.
        limit: bound on the absolute value of the output.
    """

    count: Tensor
    mean: Tensor
    var: Tensor

    def __init__(self, features: int, limit: float = 10.0) -> None:
        super().__init__()
        self.limit = limit
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("var", torch.ones(features))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take `x[..., features]` into the statistics."""
        x = x.flatten(0, -2).float()
        count = self.count + x.shape[0]
        share = (x.shape[0] / count).float()
        mean = x.mean(0)
        var = (x - mean).square_().mean(0)  # on a CPU a fifth of what `var_mean` along columns takes
        delta = mean - self.mean
        self.mean.add_(delta * share)
        self.var.mul_(1 - share).add_(share * var + share * (1 - share) * delta.square())
        self.count.copy_(count)

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) * torch.rsqrt(self.var + 1e-5)).clamp(-self.limit, self.limit)


class ReturnScale(nn.Module):
    """EMA of the range between the 5 % and the 95 % quantile of returns (arXiv 2301.04104, equation 7)."""

    value: Tensor
    quantiles: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("value", torch.zeros(()))
        # On the device from the start: to copy two numbers there in an update is to wait for all that it has to do.
        self.register_buffer("quantiles", torch.tensor([0.05, 0.95]), persistent=False)

    @torch.no_grad()
    def update(self, returns: Tensor, weight: Tensor) -> Tensor:
        """Take in the `returns` of any shape whose `weight` is not 0; give the divisor `max(1, EMA)`."""
        # Not nanquantile: in some versions of torch the host waits in it.
        counted = ((weight > 0) & ~returns.isnan()).flatten()
        ordered = torch.where(counted, returns.float().flatten(), torch.inf).sort().values
        rank = self.quantiles * (counted.sum() - 1).clamp(min=0)
        below = rank.floor()
        low, high = torch.lerp(ordered[below.long()], ordered[rank.ceil().long()], rank - below)
        self.value.lerp_((high - low).nan_to_num(), 1 - self.decay)  # inf - inf where nothing counts
        return self.value.clamp(min=1.0)
