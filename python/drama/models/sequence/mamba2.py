"""Mamba-2 (state-space duality, arXiv 2405.21060) in portable PyTorch: any device, linear in the sequence length.

Parameter names, shapes and order equal `mamba_ssm.Mamba2`'s, so weights load both ways.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drama.models.norm import GatedRMSNorm
from drama.models.sequence.base import (
    SequenceModel,
    check_positive,
    check_state,
    check_token,
    check_tokens,
    episode_segments,
)
from drama.models.sequence.conv import causal_conv, causal_conv_step, next_window
from drama.models.sequence.kernels import Kernel, Kernels, scan_kernel
from drama.models.sequence.ssd import Sizes, Weights, advance, mix

TOLERANCE = 0.02
"""How far kernels may be from the portable path, of the largest value: they multiply in TensorFloat-32."""
CUDA_CHUNK = 128
"""Least block length on CUDA, where many small operations cost more than larger ones."""


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
        chunk_size: block length of the parallel form, on CUDA at least `CUDA_CHUNK`. Changes the cost, not the result.
        kernels: `portable` PyTorch; `mamba_ssm`, its Triton kernels, on CUDA; `auto`, those where they are installed
            and, tried once, within `TOLERANCE` of `portable`.

    Raises:
        ValueError: if a size is not positive, or the sizes do not divide as stated.
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
        kernels: Kernels = "auto",
    ) -> None:
        super().__init__()
        check_positive(
            d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand, headdim=headdim, ngroups=ngroups,
            chunk_size=chunk_size,
        )  # fmt: skip
        self.kernels: Kernels = kernels
        self._trusted: dict[torch.device, bool] = {}
        d_inner = expand * d_model
        if d_inner % headdim:
            raise ValueError(f"headdim: {headdim} does not divide the inner width expand * d_model = {d_inner}")
        nheads = d_inner // headdim
        if nheads % ngroups:
            raise ValueError(f"ngroups: {ngroups} does not divide the number of heads {nheads}")
        self.d_inner, self.d_state, self.d_conv, self.headdim = d_inner, d_state, d_conv, headdim
        self.nheads, self.ngroups = nheads, ngroups
        self.sizes = Sizes(nheads, headdim, ngroups, d_state, chunk_size)
        self.conv_dim = self.sizes.conv

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
        check_tokens(x, self.in_proj.in_features, is_first, self.D)
        if state is not None:
            check_state(state, self.initial_state, x.shape[0])
        return self._evaluate(self._kernel(x.device), x, is_first, state)

    def _evaluate(
        self, kernel: Kernel | None, x: Tensor, is_first: Tensor | None, state: Mamba2State | None
    ) -> tuple[Tensor, Mamba2State]:
        """The layer with `kernel` for its recurrence, or all in PyTorch."""
        segment = episode_segments(is_first)
        window, ssm = (None, None) if state is None else state
        projected = self.in_proj(x)
        if kernel is not None:
            y, state = self._mix_with_kernel(kernel, projected, segment, window, ssm)
            return self.out_proj(y), state
        taps = self.conv1d.weight[:, 0].T.contiguous()
        weights = Weights(taps, self._conv_bias, self.dt_bias, -torch.exp(self.A_log), self.D, self.norm.weight)
        y, ssm = mix(projected, weights, segment, window, ssm, self._sizes_on(x.device))
        _, xbc, _ = self._split(projected)
        return self.out_proj(y), Mamba2State(next_window(xbc, segment, window, self.d_conv - 1), ssm)

    def _mix_with_kernel(
        self,
        kernel: Kernel,
        projected: Tensor,
        segment: Tensor | None,
        window: Tensor | None,
        ssm: Tensor | None,
    ) -> tuple[Tensor, Mamba2State]:
        """As `mix`, with `mamba_chunk_scan_combined` for the recurrence; its sequence 0 continues the given state."""
        gate, xbc, dt = self._split(projected)
        if window is None:
            window = self.initial_state(projected.shape[0]).conv
        xbc, window = causal_conv(self.conv1d, xbc, segment, window)
        groups = self.ngroups * self.d_state
        u, b, c = xbc.split([self.d_inner, groups, groups], dim=-1)
        y, ssm = kernel(
            u.unflatten(-1, (self.nheads, self.headdim)),
            dt,
            -torch.exp(self.A_log),
            b.unflatten(-1, (self.ngroups, -1)),
            c.unflatten(-1, (self.ngroups, -1)),
            chunk_size=max(16, 1 << (self._sizes_on(u.device).chunk - 1).bit_length()),  # what the kernels take
            D=self.D,
            dt_bias=self.dt_bias,
            initial_states=ssm,
            seq_idx=None if segment is None else segment.int(),
            dt_softplus=True,
            return_final_states=True,
        )
        return self.norm(y.flatten(2), gate), Mamba2State(window, ssm.to(self.D.dtype))

    def _kernel(self, device: torch.device) -> Kernel | None:
        """What `kernels` chooses on `device`; `auto` takes only what was seen to agree there, at this layer's sizes."""
        kernel = scan_kernel(self.kernels, device)
        if kernel is None or self.kernels == "mamba_ssm":
            return kernel
        if device not in self._trusted:
            self._trusted[device] = self._trusts(kernel, device)
        return kernel if self._trusted[device] else None

    def _trusts(self, kernel: Kernel, device: torch.device) -> bool:
        """Whether values, state and gradients are those of the portable path; warns if not."""
        length = 2 * self._sizes_on(device).chunk + 1
        # Not random numbers: whether this runs must not change the rest of a run.
        values = torch.arange(2 * length * self.in_proj.in_features, device=device, dtype=self.D.dtype).sin()
        is_first = torch.zeros(2, length, dtype=torch.bool, device=device)
        is_first[1, length // 3] = True

        def evaluate(kernel: Kernel | None) -> list[Tensor]:
            x = values.view(2, length, -1).requires_grad_()
            y, state = self._evaluate(kernel, x, is_first, None)
            return [y, state.ssm, *torch.autograd.grad(y.square().sum(), [x, *self.parameters()])]

        try:
            with torch.enable_grad(), torch.autocast(device.type, enabled=False):
                pairs = zip(evaluate(kernel), evaluate(None), strict=True)
            error = torch.stack([(a - b).abs().max() / b.abs().max() for a, b in pairs]).max().item()
            if error <= TOLERANCE:
                return True
            problem = f"differ from PyTorch by {error:.2g} of the largest value"
        except Exception as failure:  # a kernel that does not compile or start raises what its compiler likes
            problem = f"fail ({failure})"
        warnings.warn(f"world_model.sequence.kernels: mamba_ssm's on {device} {problem}: portable it is", stacklevel=2)
        return False

    def step(self, x: Tensor, is_first: Tensor | None, state: Mamba2State) -> tuple[Tensor, Mamba2State]:
        return self._step(x, is_first, state, in_place=False)

    @torch.no_grad()
    def step_(self, x: Tensor, is_first: Tensor | None, state: Mamba2State) -> tuple[Tensor, Mamba2State]:
        return self._step(x, is_first, state, in_place=True)

    def _step(
        self, x: Tensor, is_first: Tensor | None, state: Mamba2State, in_place: bool
    ) -> tuple[Tensor, Mamba2State]:
        """One token."""
        check_token(x, self.in_proj.in_features, is_first, self.D)
        check_state(state, self.initial_state, x.shape[0])
        gate, xbc, dt = self._split(self.in_proj(x))
        conv, ssm = state
        xbc, conv = causal_conv_step(self.conv1d, xbc, is_first, conv, conv if in_place else None)
        groups = self.ngroups * self.d_state
        u, b, c = xbc.to(ssm.dtype).split([self.d_inner, groups, groups], dim=-1)
        dt = F.softplus(dt.to(ssm.dtype) + self.dt_bias)
        decay = torch.exp(dt * -torch.exp(self.A_log))
        if is_first is not None:
            decay = decay * ~is_first[:, None]
        u = u.unflatten(-1, (self.nheads, self.headdim))
        y, ssm = advance(
            ssm,
            decay,
            dt[..., None] * u,
            b.unflatten(-1, (self.ngroups, -1)),
            c.unflatten(-1, (self.ngroups, -1)),
            ssm if in_place else None,
        )
        y = torch.addcmul(y, u, self.D[:, None])
        return self.out_proj(self.norm(y.flatten(1), gate)), Mamba2State(conv, ssm)

    def _sizes_on(self, device: torch.device) -> Sizes:
        """The sizes with the block length that suits the device."""
        if device.type != "cuda":
            return self.sizes
        return self.sizes._replace(chunk=max(self.sizes.chunk, CUDA_CHUNK))

    @property
    def _conv_bias(self) -> Tensor:
        assert self.conv1d.bias is not None
        return self.conv1d.bias

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gate, the convolution's input `x B C`, and the raw step sizes."""
        gate, xbc, dt = projected.split([self.d_inner, self.conv_dim, self.nheads], dim=-1)
        return gate, xbc, dt
