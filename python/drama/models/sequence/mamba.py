"""Mamba (selective scan, arXiv 2312.00752) in portable PyTorch: any device, linear in the sequence length.

Parameter names, shapes and order equal `mamba_ssm.Mamba`'s, so weights load both ways.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drama.models.sequence.base import (
    SequenceModel,
    check_positive,
    check_state,
    check_token,
    check_tokens,
    episode_segments,
)
from drama.models.sequence.conv import causal_conv, causal_conv_step


class MambaState(NamedTuple):
    """What one Mamba layer remembers between calls."""

    conv: Tensor  # [B, d_conv - 1, d_inner], the last inputs of the convolution, zero before an episode start
    ssm: Tensor  # [B, d_inner, d_state]


class Mamba(SequenceModel):
    """One Mamba mixer: `[B, T, d_model]` to `[B, T, d_model]`.

    Args:
        d_model: width of the input and output.
        d_state: state size N of each channel.
        d_conv: width of the causal depthwise convolution.
        expand: inner width as a multiple of `d_model`.
        dt_rank: rank of the step size's projection; by default a sixteenth of `d_model`, rounded up.

    Raises:
        ValueError: if a size is not positive.
    """

    one_piece = False  # a loop over the tokens

    def __init__(
        self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, dt_rank: int | None = None
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand)
        d_inner = expand * d_model
        self.d_inner, self.d_state, self.d_conv = d_inner, d_state, d_conv
        self.dt_rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner)
        self.x_proj = nn.Linear(d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, d_inner)
        # The step size starts log-uniform in [0.001, 0.1] through an inverse softplus; A starts at -1 ... -N.
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        dt = torch.exp(torch.rand(d_inner) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)).clamp(min=1e-4)
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def initial_state(self, batch: int) -> MambaState:
        return MambaState(
            conv=self.D.new_zeros(batch, self.d_conv - 1, self.d_inner),
            ssm=self.D.new_zeros(batch, self.d_inner, self.d_state),
        )

    def forward(
        self, x: Tensor, is_first: Tensor | None = None, state: MambaState | None = None
    ) -> tuple[Tensor, MambaState]:
        check_tokens(x, self.in_proj.in_features, is_first, self.D)
        if state is not None:
            check_state(state, self.initial_state, x.shape[0])
        conv, ssm = self.initial_state(x.shape[0]) if state is None else state
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        u, conv = causal_conv(self.conv1d, u, episode_segments(is_first), conv)
        decay, inputs, c = self._discretise(u)
        if is_first is not None:
            decay = decay * ~is_first[:, :, None, None]
        outputs = []
        for decay_t, inputs_t, c_t in zip(decay.unbind(1), inputs.unbind(1), c.unbind(1), strict=True):
            ssm = torch.addcmul(inputs_t, decay_t, ssm)
            outputs.append((ssm * c_t[:, None]).sum(-1))
        return self._out(torch.stack(outputs, dim=1), u, gate), MambaState(conv, ssm)

    def step(self, x: Tensor, is_first: Tensor | None, state: MambaState) -> tuple[Tensor, MambaState]:
        check_token(x, self.in_proj.in_features, is_first, self.D)
        check_state(state, self.initial_state, x.shape[0])
        conv, ssm = state
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        u, conv = causal_conv_step(self.conv1d, u, is_first, conv)
        decay, inputs, c = self._discretise(u)
        if is_first is not None:
            decay = decay * ~is_first[:, None, None]
        ssm = torch.addcmul(inputs, decay, ssm)
        return self._out((ssm * c[..., None, :]).sum(-1), u, gate), MambaState(conv, ssm)

    def _discretise(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decay and input `[..., d_inner, d_state]` and the output map `[..., d_state]` of `u[..., d_inner]`."""
        dtype = self.A_log.dtype
        dt, b, c = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = F.softplus(self.dt_proj(dt).to(dtype))[..., None]
        return (
            torch.exp(dt * -torch.exp(self.A_log)),
            dt * u.to(dtype)[..., None] * b.to(dtype)[..., None, :],
            c.to(dtype),
        )

    def _out(self, y: Tensor, u: Tensor, gate: Tensor) -> Tensor:
        return self.out_proj((y + u * self.D) * F.silu(gate))
