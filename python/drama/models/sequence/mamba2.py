"""Mamba-2 (state-space duality, arXiv 2405.21060) in portable PyTorch: any device, linear in the sequence length.

Parameter names, shapes and order equal `mamba_ssm.Mamba2`'s, so weights load both ways.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drama.models.norm import GatedRMSNorm
from drama.models.sequence.base import SequenceModel, episode_segments
from drama.models.sequence.conv import causal_conv, causal_conv_step


class Mamba2State(NamedTuple):
    """What one Mamba-2 layer remembers between calls."""

    conv: Tensor  # [B, d_conv - 1, conv_dim], the last inputs of the convolution, zero before an episode start
    ssm: Tensor  # [B, heads, headdim, d_state], in the precision of the parameters


class Mamba2(SequenceModel):
    """One Mamba-2 mixer: `[B, T, d_model]` to `[B, T, d_model]`.

    Args:
        d_model: width of the input and output.
        d_state: state size N of each head.
        d_conv: width of the causal depthwise convolution.
        expand: inner width as a multiple of `d_model`.
        headdim: channels P of each head; must divide the inner width.
        ngroups: groups that share B and C; must divide the number of heads.
        chunk_size: block length of the parallel form. Changes the cost, not the result.

    Raises:
        ValueError: if the sizes do not divide as stated.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        ngroups: int = 1,
        chunk_size: int = 32,
    ) -> None:
        super().__init__()
        d_inner = expand * d_model
        if d_inner % headdim:
            raise ValueError(f"headdim: {headdim} does not divide the inner width expand * d_model = {d_inner}")
        nheads = d_inner // headdim
        if nheads % ngroups:
            raise ValueError(f"ngroups: {ngroups} does not divide the number of heads {nheads}")
        self.d_inner, self.d_state, self.d_conv, self.headdim = d_inner, d_state, d_conv, headdim
        self.nheads, self.ngroups, self.chunk_size = nheads, ngroups, chunk_size
        self.conv_dim = d_inner + 2 * ngroups * d_state

        self.in_proj = nn.Linear(d_model, d_inner + self.conv_dim + nheads, bias=False)
        self.conv1d = nn.Conv1d(self.conv_dim, self.conv_dim, d_conv, groups=self.conv_dim)
        # The step size starts log-uniform in [0.001, 0.1] through an inverse softplus, A uniform in [1, 16].
        dt = torch.exp(torch.rand(nheads) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)).clamp(min=1e-4)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.A_log = nn.Parameter(torch.log(torch.empty(nheads).uniform_(1, 16)))
        self.D = nn.Parameter(torch.ones(nheads))
        self.norm = GatedRMSNorm(d_inner, ngroups)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def initial_state(self, batch: int) -> Mamba2State:
        return Mamba2State(
            conv=self.D.new_zeros(batch, self.d_conv - 1, self.conv_dim),
            ssm=self.D.new_zeros(batch, self.nheads, self.headdim, self.d_state),
        )

    def forward(
        self, x: Tensor, is_first: Tensor | None = None, state: Mamba2State | None = None
    ) -> tuple[Tensor, Mamba2State]:
        batch, length, _ = x.shape
        conv, ssm = self.initial_state(batch) if state is None else state
        segment = episode_segments(is_first)
        gate, xbc, dt = self._project(x)
        xbc, conv = causal_conv(self.conv1d, xbc, segment, conv)
        u, b, c = self._split(xbc)
        y, ssm = ssd_scan(u, dt, -torch.exp(self.A_log), b, c, segment, ssm, self.chunk_size)
        y = y + u * self.D[:, None]
        return self.out_proj(self.norm(y.reshape(batch, length, self.d_inner), gate)), Mamba2State(conv, ssm)

    def step(self, x: Tensor, is_first: Tensor | None, state: Mamba2State) -> tuple[Tensor, Mamba2State]:
        gate, xbc, dt = self._project(x)
        conv, ssm = state
        xbc, conv = causal_conv_step(self.conv1d, xbc, is_first, conv)
        if is_first is not None:
            ssm = ssm * ~is_first[:, None, None, None]
        u, b, c = self._split(xbc)
        # [B, G, H / G, P, N] = [B, G, H / G, P, 1] * [B, G, 1, 1, N], in few passes over the large state
        shape = (-1, self.ngroups, self.nheads // self.ngroups, self.headdim, self.d_state)
        decay = torch.exp(dt * -torch.exp(self.A_log))
        inputs = (dt[..., None] * u).reshape(*shape[:-1], 1)
        b, c = (v.to(ssm.dtype)[:, :, None, None] for v in (b, c))
        state5 = torch.addcmul((ssm * decay[..., None, None]).reshape(shape), inputs, b)
        y = (state5 * c).sum(-1).reshape(u.shape) + u * self.D[:, None]
        ssm = state5.reshape(ssm.shape)
        return self.out_proj(self.norm(y.flatten(1), gate)), Mamba2State(conv, ssm)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate, xbc, dt = self.in_proj(x).split([self.d_inner, self.conv_dim, self.nheads], dim=-1)
        return gate, xbc, F.softplus(dt.to(self.dt_bias.dtype) + self.dt_bias)

    def _split(self, xbc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        groups = self.ngroups * self.d_state
        u, b, c = xbc.split([self.d_inner, groups, groups], dim=-1)
        return (
            u.unflatten(-1, (self.nheads, self.headdim)),
            b.unflatten(-1, (self.ngroups, self.d_state)),
            c.unflatten(-1, (self.ngroups, self.d_state)),
        )


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    segment: Tensor | None,
    state: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """The selective state-space recurrence in chunks: quadratic inside a chunk, a recurrence between chunks.

    `h_t = exp(dt_t a) h_{t-1} + dt_t x_t b_t^T` and `y_t = h_t c_t`, where `h` restarts from zero wherever `segment`
    grows (arXiv 2405.21060, section 6).

    Args:
        x: `[B, T, H, P]` inputs per head.
        dt: `[B, T, H]` positive step sizes.
        a: `[H]` negative rates.
        b: `[B, T, G, N]` input maps, shared by H / G heads.
        c: `[B, T, G, N]` output maps.
        segment: `[B, T]` episode numbers, 0 for the episode that `state` belongs to, or None.
        state: `[B, H, P, N]` before the first token.
        chunk_size: tokens per chunk.

    Returns:
        `y[B, T, H, P]` and the state after the last token.
    """
    length = x.shape[1]
    groups = b.shape[2]
    size = min(chunk_size, length)
    pad = -length % size
    x = x * dt[..., None].to(x.dtype)
    log_decay = dt * a
    if pad:  # a padded token has no input and no decay, so the final state is that of the last real one
        x, b, c = (F.pad(v, (0, 0, 0, 0, 0, pad)) for v in (x, b, c))
        log_decay = F.pad(log_decay, (0, 0, 0, pad))
    if segment is None:
        segment = torch.zeros(1, length, dtype=torch.long, device=x.device)
    segment = torch.cat([segment, segment[:, -1:].expand(-1, pad)], dim=1).unflatten(1, (-1, size))
    # [B, K, H, Q, P], [B, K, G, Q, N], [B, K, H, Q]
    x, b, c = (v.unflatten(1, (-1, size)).transpose(2, 3) for v in (x, b, c))
    total = log_decay.unflatten(1, (-1, size)).transpose(2, 3).cumsum(-1)
    chunks = x.shape[1]

    # Inside each chunk: token s reaches token t if both lie in one episode and s <= t.
    causal = torch.ones(size, size, dtype=torch.bool, device=x.device).tril()
    reach = (segment[..., :, None] == segment[..., None, :]) & causal
    decay = torch.exp((total[..., :, None] - total[..., None, :]).masked_fill(~reach[:, :, None], -torch.inf))
    scores = (c @ b.transpose(-1, -2))[:, :, :, None] * decay.unflatten(2, (groups, -1))
    y = scores.flatten(2, 3) @ x

    # The state that each chunk adds, then the recurrence over chunks.
    last = segment[..., -1:]
    to_end = torch.exp(total[..., -1:] - total) * (segment == last)[:, :, None]
    weighted = (x * to_end[..., None].to(x.dtype)).unflatten(2, (groups, -1))
    added = (weighted.transpose(-1, -2) @ b[:, :, :, None]).flatten(2, 3).to(state.dtype)
    entering = torch.cat([torch.zeros_like(last[:, :1]), last[:, :-1]], dim=1)  # the episode each chunk continues
    through = torch.exp(total[..., -1]) * (last == entering)
    states = []
    for k in range(chunks):
        states.append(state)
        state = state * through[:, k, :, None, None] + added[:, k]

    # What the entering state contributes to each token.
    from_start = torch.exp(total) * (segment == entering)[:, :, None]
    carried = torch.stack(states, dim=1).unflatten(2, (groups, -1)).transpose(-1, -2)
    y = y + (c[:, :, :, None] @ carried.to(c.dtype)).flatten(2, 3) * from_start[..., None].to(y.dtype)
    return y.transpose(2, 3).flatten(1, 2)[:, :length], state
