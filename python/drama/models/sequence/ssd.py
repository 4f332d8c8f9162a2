"""What a Mamba-2 layer computes between its two projections, in tiles that fit the cache, with its own backward pass.

A tile is one chunk of tokens of some rows of the batch. Inside it tokens mix by a matrix product (the dual form of
arXiv 2405.21060, section 6); from tile to tile only the state is carried, so time and memory are linear in the length.
The backward pass keeps nothing of the forward pass but the projected input and the state that enters each chunk: to
compute the rest again in the cache is cheaper than to read it back from memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from drama.models.norm import EPS
from drama.models.sequence.conv import convolved

TILE = 512
"""Tokens of a tile on the CPU: a few arrays of a thousand channels of them fit a core's cache."""

STATE_TILE = 2**20
"""Values of the state that one step works on at a time, for the same reason."""


class Sizes(NamedTuple):
    """The sizes of a layer."""

    heads: int
    headdim: int
    groups: int
    state: int
    chunk: int

    @property
    def inner(self) -> int:
        """Channels of the input and the gate."""
        return self.heads * self.headdim

    @property
    def conv(self) -> int:
        """Channels of the convolution: input, B and C."""
        return self.inner + 2 * self.groups * self.state


class Weights(NamedTuple):
    """The parameters, in the precision that everything is computed in."""

    conv: Tensor  # [K, conv], the last tap on the present token
    conv_bias: Tensor  # [conv]
    dt_bias: Tensor  # [H]
    a: Tensor  # [H], negative rates
    d: Tensor  # [H], share of the input that passes by the state
    norm: Tensor  # [inner]


def mix(
    projected: Tensor,
    weights: Weights,
    segment: Tensor | None,
    window: Tensor | None,
    state: Tensor | None,
    sizes: Sizes,
) -> tuple[Tensor, Tensor]:
    """Causal convolution, state-space recurrence, gate and RMS norm.

    With `gate, x B C, dt` the parts of `projected`, and `x B C` after convolution and SiLU:
    `h_t = exp(dt_t a) h_{t-1} + dt_t x_t B_t^T`, `y_t = h_t C_t + d x_t`, and the output is
    `RMSNorm(y * silu(gate))`. Window and state start from zero wherever `segment` grows.

    Args:
        projected: `[B, T, inner + conv + H]` of any floating dtype.
        weights: the parameters.
        segment: `[B, T]` episode numbers, 0 for the episode that window and state belong to, or None.
        window: `[B, K - 1, conv]` inputs of the convolution before the first token; None stands for zeros.
        state: `[B, H, P, N]` before the first token; None stands for zeros.
        sizes: of the layer; `chunk` changes the cost, not the result.

    Returns:
        `[B, T, inner]` in the dtype of `projected`, and the state after the last token.
    """
    if torch.compiler.is_compiling():
        return mix_plainly(projected, weights, segment, window, state, sizes)
    y, final = _Mix.apply(projected, *weights, segment, window, state, sizes)
    return y, final


def mix_plainly(
    projected: Tensor,
    weights: Weights,
    segment: Tensor | None,
    window: Tensor | None,
    state: Tensor | None,
    sizes: Sizes,
) -> tuple[Tensor, Tensor]:
    """`mix` for a compiler: operators without side effects, which it fuses and differentiates itself.

    All chunks are computed at once, and the state is then carried from one to the next.
    """
    with torch.autocast(projected.device.type, enabled=False):
        batch, length, _ = projected.shape
        gate, xbc, raw = projected.to(weights.a.dtype).split([sizes.inner, sizes.conv, sizes.heads], dim=-1)
        if segment is None:
            segment = torch.zeros(batch, length, dtype=torch.long, device=projected.device)
        act = F.silu(convolved(xbc, weights.conv, weights.conv_bias, segment, window))
        dt = F.softplus(raw + weights.dt_bias)

        times = _time_slices(length, sizes)
        chunks, size = len(times), times[0].stop
        missing = chunks * size - length  # tokens of no length: they leave the state as it is
        act, dt = (F.pad(x, (0, 0, 0, missing)).unflatten(1, (chunks, size)) for x in (act, dt))
        episode = torch.cat([segment, segment[:, -1:].expand(-1, missing)], dim=1).unflatten(1, (chunks, size))
        last = episode[..., -1]
        before = torch.cat([torch.zeros_like(last[:, :1]), last[:, :-1]], dim=1)  # of the token before each chunk

        maps = sizes.groups * sizes.state
        u, b, c = act.split([sizes.inner, maps, maps], dim=-1)
        u = u.unflatten(-1, (sizes.groups, -1, sizes.headdim)).permute(0, 1, 3, 4, 2, 5)  # [B, C, G, E, Q, P]
        b, c = (x.unflatten(-1, (sizes.groups, -1)).transpose(2, 3) for x in (b, c))  # [B, C, G, Q, N]
        dt = dt.unflatten(-1, (sizes.groups, -1)).permute(0, 1, 3, 4, 2)  # [B, C, G, E, Q]
        total = (dt * weights.a.view(sizes.groups, -1, 1)).cumsum(-1)

        reach = torch.ones(size, size, dtype=torch.bool, device=projected.device).tril()
        reach = reach & (episode[..., :, None] == episode[..., None, :])
        decay = torch.exp((total[..., :, None] - total[..., None, :]).masked_fill(~reach[:, :, None, None], -torch.inf))
        matrix = decay * (c @ b.mT)[:, :, :, None] * dt[..., None, :]
        y = matrix @ u + u * weights.d.view(sizes.groups, -1, 1, 1)

        ends = episode == last[..., None]
        share = torch.exp(total[..., -1:] - total) * dt * ends[:, :, None, None]
        own = (u * share[..., None]).mT @ b[:, :, :, None]  # [B, C, G, E, P, N], what each chunk adds to the state
        through = torch.exp(total[..., -1]) * (last == before)[:, :, None, None]
        h = torch.zeros_like(own[:, 0]) if state is None else state.unflatten(1, (sizes.groups, -1))
        entering = []
        for k in range(chunks):
            entering.append(h)
            h = torch.addcmul(own[:, k], through[:, k, ..., None, None], h)
        if chunks > 1 or state is not None:
            from_start = torch.exp(total) * (episode == before[..., None])[:, :, None, None]
            y = y + from_start[..., None] * (c[:, :, :, None] @ torch.stack(entering, dim=1).mT)
        tokens = y.permute(0, 1, 4, 2, 3, 5).reshape(batch, chunks * size, sizes.inner)[:, :length]
        parts = (tokens * F.silu(gate)).unflatten(-1, (sizes.groups, -1))
        normed = parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + EPS)
        return (normed.flatten(2) * weights.norm).to(projected.dtype), h.flatten(1, 2)


class _Tile(NamedTuple):
    """One tile on the way forward: R rows, Q tokens, H heads of P channels, G groups of E heads."""

    inputs: Tensor  # [R, K - 1 + Q, conv], before the convolution
    same: Tensor | None  # [R, K - 1 + Q, Q] bool, which inputs belong to the episode of which token
    pre: Tensor  # [R, Q, conv], before the SiLU
    u: Tensor  # [R, H, Q, P]
    b: Tensor  # [R, G, Q, N]
    c: Tensor  # [R, G, Q, N]
    dt: Tensor  # [R, H, Q]
    decay: Tensor  # [R, G, E, Q, Q], from token to token
    scores: Tensor  # [R, G, 1, Q, Q], C B^T
    from_start: Tensor | None  # [R, H, Q], decay of the entering state; None: there is none
    carried: Tensor | None  # [R, H, Q, P], what the entering state gives each token, before its decay
    to_end: Tensor  # [R, H, Q]
    through: Tensor  # [R, H, 1, 1]
    y: Tensor  # [R, H, Q, P]


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        conv: Tensor,
        conv_bias: Tensor,
        dt_bias: Tensor,
        a: Tensor,
        d: Tensor,
        norm: Tensor,
        segment: Tensor | None,
        window: Tensor | None,
        state: Tensor | None,
        sizes: Sizes,
    ) -> tuple[Tensor, Tensor]:
        weights = Weights(conv, conv_bias, dt_bias, a, d, norm)
        batch, length, _ = projected.shape
        out = projected.new_empty(batch, length, sizes.inner)
        chunks = len(_time_slices(length, sizes))
        entering = a.new_empty(max(chunks - 1, 0), batch, sizes.heads, sizes.headdim, sizes.state)
        final = a.new_empty(batch, sizes.heads, sizes.headdim, sizes.state)
        with torch.autocast(projected.device.type, enabled=False):
            for rows in _row_slices(projected, sizes):
                old = None if state is None else state[rows]
                for k, times in enumerate(_time_slices(length, sizes)):
                    tile = _evaluate(projected, weights, segment, window, old, rows, times, sizes)
                    new = final[rows] if k == chunks - 1 else entering[k, rows]
                    old = _next_state(tile, old, new)
                    gate = F.silu(projected[rows, times, : sizes.inner].to(a.dtype))
                    normed = torch.empty_like(gate)
                    torch.mul(tile.y, _heads(gate, sizes), out=_heads(normed, sizes))
                    normed.unflatten(-1, (sizes.groups, -1)).mul_(_inverse_norm(normed, sizes))
                    torch.mul(normed, norm, out=out[rows, times])
        ctx.save_for_backward(projected, *weights, segment, window, state, entering)
        ctx.sizes = sizes
        ctx.set_materialize_grads(False)
        return out, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor | None, grad_final: Tensor | None) -> tuple[Tensor | None, ...]:
        projected, *parameters, segment, window, state, entering = ctx.saved_tensors
        weights, sizes = Weights(*parameters), ctx.sizes
        length = projected.shape[1]
        grads = Weights(*(torch.zeros_like(p) for p in weights))
        grad_projected = torch.empty_like(projected)
        grad_window = None if window is None else torch.empty_like(window)
        grad_state = None if state is None else torch.empty_like(state)
        # Of the states between chunks, by turns: memory that is new to the process costs more than the products.
        row_slices = _row_slices(projected, sizes)
        most = min(row_slices[0].stop, projected.shape[0]) if row_slices else 0
        buffers = weights.a.new_empty(2, most, *entering.shape[2:])
        with torch.autocast(projected.device.type, enabled=False):
            for rows in row_slices:
                after = None if grad_final is None else grad_final[rows]
                spill: Tensor | None = None  # gradient of inputs that a later chunk's convolution reached back to
                for k, times in reversed(list(enumerate(_time_slices(length, sizes)))):
                    old = (None if state is None else state[rows]) if k == 0 else entering[k - 1, rows]
                    tile = _evaluate(projected, weights, segment, window, old, rows, times, sizes)
                    grad = projected.new_zeros(1).expand(*tile.pre.shape[:2], sizes.inner)
                    if grad_out is not None:
                        grad = grad_out[rows, times]
                    gate = projected[rows, times, : sizes.inner].to(weights.a.dtype)
                    target = grad_projected[rows, times]
                    grad_y = _norm_backward(tile.y, gate, grad, weights, grads, sizes, out=target[..., : sizes.inner])
                    grad_act, grad_dt, after = _mix_backward(
                        tile, grad_y, after, old, weights, grads, sizes, out=buffers[k % 2]
                    )
                    grad_inputs = _conv_backward(tile, grad_act, weights, grads)
                    past = grad_inputs.shape[1] - grad_act.shape[1]
                    if spill is not None:
                        grad_inputs[:, grad_act.shape[1] :].add_(spill)
                    spill = grad_inputs[:, :past]
                    raw = projected[rows, times, sizes.inner + sizes.conv :].to(weights.a.dtype) + weights.dt_bias
                    grad_raw = grad_dt.transpose(1, 2) * raw.sigmoid()
                    grads.dt_bias.add_(grad_raw.sum((0, 1)))
                    target[..., sizes.inner : sizes.inner + sizes.conv].copy_(grad_inputs[:, past:])
                    target[..., sizes.inner + sizes.conv :].copy_(grad_raw)
                if grad_window is not None and spill is not None:
                    grad_window[rows] = spill
                if grad_state is not None:
                    grad_state[rows] = 0 if after is None else after
        return grad_projected, *grads, None, grad_window, grad_state, None


def advance(
    ssm: Tensor, decay: Tensor, inputs: Tensor, b: Tensor, c: Tensor, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One token of the recurrence: `h = decay h_before + inputs b^T`, `y = h c`.

    Args:
        ssm: `[B, H, P, N]`, the state before.
        decay: `[B, H]`.
        inputs: `[B, H, P]`.
        b: `[B, G, N]`.
        c: `[B, G, N]`.
        out: what to write the state after into, without gradient; may be `ssm`, and then no memory is touched that is
            not in use already, which is most of the time of a step. None makes a new tensor.

    Returns:
        `y[B, H, P]` and the state after.
    """
    batch, heads, headdim, size = ssm.shape
    groups = b.shape[1]
    if torch.compiler.is_compiling():  # it makes one pass of this
        b_heads, c_heads = (part.repeat_interleave(heads // groups, 1)[:, :, None] for part in (b, c))
        new = ssm * decay[..., None, None] + inputs[..., None] * b_heads
        return (new * c_heads).sum(-1), new if out is None else out.copy_(new)
    if torch.is_grad_enabled():
        b_heads = b.repeat_interleave(heads // groups, 1)[:, :, None]
        new = torch.addcmul(ssm * decay[..., None, None], inputs[..., None], b_heads)
        return (new.view(batch, groups, -1, size) @ c[..., None]).view(batch, heads, headdim), new
    new = torch.empty_like(ssm) if out is None else out
    y = ssm.new_empty(batch, groups, heads // groups * headdim, 1)
    inputs = inputs.unflatten(1, (groups, -1))[..., None]
    rows = max(1, STATE_TILE // ssm[:1].numel()) if ssm.device.type == "cpu" else batch
    for begin in range(0, batch, rows):  # the state is large: pass over it once
        part = slice(begin, begin + rows)
        block = torch.mul(ssm[part], decay[part, :, None, None], out=new[part]).unflatten(1, (groups, -1))
        block.addcmul_(inputs[part], b[part, :, None, None])
        torch.bmm(block.view(-1, y.shape[2], size), c[part].reshape(-1, 1, size).mT, out=y[part].flatten(0, 1))
    return y.view(batch, heads, headdim), new


def _row_slices(projected: Tensor, sizes: Sizes) -> list[slice]:
    batch, length, _ = projected.shape
    times = _time_slices(length, sizes)[0]
    rows = max(1, TILE // times.stop) if projected.device.type == "cpu" else batch
    return [slice(begin, begin + rows) for begin in range(0, batch, rows)]


def _time_slices(length: int, sizes: Sizes) -> list[slice]:
    """Equal chunks, but for the last, of at most `sizes.chunk` tokens."""
    count = -(-length // sizes.chunk)
    size = -(-length // count)
    return [slice(begin, min(begin + size, length)) for begin in range(0, length, size)]


def _tokens(x: Tensor) -> Tensor:
    """`[R, H, Q, P]` as a view of tokens, `[R, Q, H P]` once it is written or reshaped."""
    return x.transpose(1, 2).flatten(2)


def _heads(x: Tensor, sizes: Sizes) -> Tensor:
    """`[R, Q, H P]` as the view `[R, H, Q, P]`."""
    return x.unflatten(-1, (sizes.heads, sizes.headdim)).transpose(1, 2)


def _groups(x: Tensor, sizes: Sizes) -> Tensor:
    """`[R, Q, G X]` as the view `[R, G, Q, X]`."""
    return x.unflatten(-1, (sizes.groups, -1)).transpose(1, 2)


def _evaluate(
    projected: Tensor,
    weights: Weights,
    segment: Tensor | None,
    window: Tensor | None,
    state: Tensor | None,
    rows: slice,
    times: slice,
    sizes: Sizes,
) -> _Tile:
    """The tile from the projected input and the entering state up to `y`."""
    inputs = _padded(projected, window, rows, times, weights.conv.shape[0] - 1, sizes, weights.a.dtype)
    past = weights.conv.shape[0] - 1
    length = inputs.shape[1] - past
    entered = ends = None
    same = None
    if segment is not None:
        padded = F.pad(segment[rows, max(0, times.start - past) : times.stop], (max(0, past - times.start), 0))
        same = padded[:, :, None] == padded[:, None, past:]
        before = segment[rows, times.start - 1 : times.start] if times.start else torch.zeros_like(padded[:, :1])
        entered = (padded[:, past:] == before)[:, None]
        ends = (padded[:, past:] == padded[:, -1:])[:, None]

    pre = torch.addcmul(weights.conv_bias, inputs[:, past:], weights.conv[past])
    for tap in range(past):
        reached = inputs[:, tap : tap + length]
        if same is not None:
            reached = reached * _tap(same, tap)
        pre.addcmul_(reached, weights.conv[tap])
    maps = F.silu(pre[..., sizes.inner :])
    b, c = (_groups(part, sizes).contiguous() for part in maps.chunk(2, dim=-1))
    u = pre.new_empty(pre.shape[0], sizes.heads, length, sizes.headdim)
    torch.ops.aten.silu.out(_heads(pre[..., : sizes.inner], sizes), out=u)

    raw = projected[rows, times, sizes.inner + sizes.conv :].to(weights.a.dtype) + weights.dt_bias
    dt = F.softplus(raw).transpose(1, 2).contiguous()
    total = (dt * weights.a[:, None]).cumsum(-1)
    reach = torch.ones(length, length, dtype=torch.bool, device=u.device).tril()
    if same is not None:
        reach = (same[:, past:].transpose(1, 2) & reach)[:, None]
    barrier = torch.zeros(reach.shape, dtype=total.dtype, device=u.device).masked_fill_(~reach, -torch.inf)
    decay = (total[..., :, None] - total[..., None, :]).add_(barrier).exp_().unflatten(1, (sizes.groups, -1))
    scores = (c @ b.mT)[:, :, None]
    matrix = (decay * scores).flatten(1, 2).mul_(dt[..., None, :])
    matrix.diagonal(dim1=-2, dim2=-1).add_(weights.d[:, None])
    y = matrix @ u

    from_start = carried = None
    through = torch.exp(total[..., -1:])
    to_end = torch.exp(total[..., -1:] - total)
    if ends is not None:
        to_end.mul_(ends)
    if state is not None:
        from_start = torch.exp(total)
        if entered is not None:
            from_start = from_start * entered
            through = through * entered[..., -1:]
        grouped = state.unflatten(1, (sizes.groups, -1)).flatten(2, 3)
        carried = _heads((c @ grouped.mT).transpose(1, 2).flatten(2), sizes)
        y.addcmul_(carried, from_start[..., None])
    return _Tile(inputs, same, pre, u, b, c, dt, decay, scores, from_start, carried, to_end, through[..., None], y)


def _padded(
    projected: Tensor, window: Tensor | None, rows: slice, times: slice, past: int, sizes: Sizes, dtype: torch.dtype
) -> Tensor:
    """The convolution's inputs of a tile with the `past` inputs before it; a view of `projected` where possible."""
    source = projected[rows, max(0, times.start - past) : times.stop, sizes.inner : sizes.inner + sizes.conv]
    missing = max(0, past - times.start)
    if not missing and source.dtype == dtype:
        return source
    inputs = torch.empty(source.shape[0], missing + source.shape[1], sizes.conv, dtype=dtype, device=source.device)
    inputs[:, missing:].copy_(source)
    if missing:
        inputs[:, :missing] = 0 if window is None else window[rows, times.start :]
    return inputs


def _tap(same: Tensor, tap: int) -> Tensor:
    """`[R, Q, 1]`: whether the input that `tap` reaches lies in the episode of each token."""
    return same.diagonal(-tap, dim1=1, dim2=2)[..., None]


def _next_state(tile: _Tile, state: Tensor | None, out: Tensor) -> Tensor:
    """Write the state after the tile into `out`."""
    grouped = out.unflatten(1, (tile.b.shape[1], -1)).flatten(2, 3)
    torch.matmul(_weighted(tile).transpose(-1, -2), tile.b, out=grouped)
    if state is not None:
        out.addcmul_(state, tile.through)
    return out


def _weighted(tile: _Tile) -> Tensor:
    """The inputs as they count in the state after the tile, by group: `[R, G, Q, E P]`."""
    rows, heads, length, headdim = tile.u.shape
    weighted = tile.u.new_empty(rows, length, heads, headdim)
    torch.mul(tile.u, (tile.to_end * tile.dt)[..., None], out=weighted.transpose(1, 2))
    return weighted.view(rows, length, tile.b.shape[1], -1).transpose(1, 2)


def _inverse_norm(gated: Tensor, sizes: Sizes) -> Tensor:
    """`1 / sqrt(mean square + eps)` of each group: `[R, Q, G, 1]`."""
    parts = gated.unflatten(-1, (sizes.groups, -1))
    return torch.rsqrt(torch.linalg.vector_norm(parts, dim=-1, keepdim=True).square() / parts.shape[-1] + EPS)


def _norm_backward(
    y: Tensor, gate: Tensor, grad: Tensor, weights: Weights, grads: Weights, sizes: Sizes, out: Tensor
) -> Tensor:
    """Gradient of `y[R, H, Q, P]`, in that layout; that of the gate `[R, Q, inner]` goes into `out`."""
    activated = F.silu(gate)
    tokens = _tokens(y)
    normed = tokens * activated
    inverse = _inverse_norm(normed, sizes)
    parts = normed.unflatten(-1, (sizes.groups, -1)).mul_(inverse)
    product = normed * grad
    grads.norm.add_(product.sum((0, 1)))
    grad = grad * weights.norm
    along = torch.einsum("rqgd,gd->rqg", product.view_as(parts), weights.norm.view(sizes.groups, -1))[..., None]
    grad_parts = grad.unflatten(-1, (sizes.groups, -1))
    grad_parts.addcmul_(parts, along, value=-1 / parts.shape[-1]).mul_(inverse)
    grad_y = torch.empty_like(y)
    torch.mul(_heads(grad, sizes), _heads(activated, sizes), out=grad_y)
    torch.ops.aten.silu_backward.grad_input(grad.mul_(tokens), gate, grad_input=out)
    return grad_y


def _mix_backward(
    tile: _Tile,
    grad_y: Tensor,
    after: Tensor | None,
    state: Tensor | None,
    weights: Weights,
    grads: Weights,
    sizes: Sizes,
    out: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of `x B C` after the SiLU `[R, Q, conv]`, of `dt[R, H, Q]`, and of the entering state, in `out`.

    `after` is the gradient of the state after the tile, None where nothing depends on it.
    """
    u, b, c, dt, decay = tile.u, tile.b, tile.c, tile.dt, tile.decay
    # Inside the tile. `total` is the log of the decay from the tile's start; `matrix` mixed the tokens.
    grad_matrix = grad_y @ u.mT
    grads.d.add_(grad_matrix.diagonal(dim1=-2, dim2=-1).sum((0, 2)))
    mixed = decay * tile.scores
    matrix = mixed.flatten(1, 2) * dt[..., None, :]
    matrix.diagonal(dim1=-2, dim2=-1).add_(weights.d[:, None])
    grad_u = matrix.mT @ grad_y
    product = mixed.flatten(1, 2).mul_(grad_matrix)
    grad_dt = product.sum(-2)
    grad_total = (product @ dt[..., None]).squeeze(-1).addcmul_(grad_dt, dt, value=-1)
    grad_scores = grad_matrix.mul_(dt[..., None, :]).view_as(decay).mul_(decay).sum(2)
    grad_c = grad_scores @ b
    grad_b = grad_scores.mT @ c

    before: Tensor | None = None
    if state is not None and tile.from_start is not None and tile.carried is not None:
        reached = torch.empty_like(tile.carried.transpose(1, 2))
        torch.mul(grad_y, tile.from_start[..., None], out=reached.transpose(1, 2))
        grad_total.add_((reached.transpose(1, 2) * tile.carried).sum(-1))
        reached = _groups(reached.flatten(2), sizes)
        grad_c.add_(reached @ state.unflatten(1, (sizes.groups, -1)).flatten(2, 3))
        before = out[: state.shape[0]]
        torch.matmul(reached.mT, c, out=before.unflatten(1, (sizes.groups, -1)).flatten(2, 3))
    if after is not None:
        grouped = after.unflatten(1, (sizes.groups, -1)).flatten(2, 3)
        grad_b.add_(_weighted(tile) @ grouped)
        grad_weighted = _heads((b @ grouped.mT).transpose(1, 2).flatten(2), sizes)
        share = tile.to_end * dt
        grad_u.addcmul_(grad_weighted, share[..., None])
        grad_share = (grad_weighted * u).sum(-1)
        grad_dt.addcmul_(grad_share, tile.to_end)
        grad_log = grad_share * share
        grad_total.sub_(grad_log)
        grad_total[..., -1].add_(grad_log.sum(-1))
        if state is not None and before is not None:
            product = after.flatten(2)[:, :, None] @ state.flatten(2)[..., None]
            grad_total[..., -1].add_((tile.through * product)[..., 0, 0])
            before.addcmul_(after, tile.through)

    grad_log_decay = grad_total.flip(-1).cumsum(-1).flip(-1)
    grads.a.add_((grad_log_decay * dt).sum((0, 2)))
    grad_dt.addcmul_(grad_log_decay, weights.a[:, None])
    grad_act = torch.empty_like(tile.pre)
    torch.ops.aten.silu_backward.grad_input(
        grad_u,
        _heads(tile.pre[..., : sizes.inner], sizes),
        grad_input=_heads(grad_act[..., : sizes.inner], sizes),
    )
    maps = torch.cat([v.transpose(1, 2).flatten(2) for v in (grad_b, grad_c)], dim=-1)
    grad_act[..., sizes.inner :] = torch.ops.aten.silu_backward(maps, tile.pre[..., sizes.inner :])
    return grad_act, grad_dt, before


def _conv_backward(tile: _Tile, grad: Tensor, weights: Weights, grads: Weights) -> Tensor:
    """Gradient of the convolution's inputs `[R, K - 1 + Q, conv]` from that of its output `[R, Q, conv]`."""
    past, length = weights.conv.shape[0] - 1, grad.shape[1]
    grads.conv_bias.add_(grad.sum((0, 1)))
    grad_inputs = torch.empty_like(tile.inputs)
    grad_inputs[:, :past] = 0
    torch.mul(grad, weights.conv[past], out=grad_inputs[:, past:])
    grads.conv[past].add_((grad * tile.inputs[:, past:]).sum((0, 1)))
    for tap in range(past):
        reached = grad if tile.same is None else grad * _tap(tile.same, tap)
        grads.conv[tap].add_((reached * tile.inputs[:, tap : tap + length]).sum((0, 1)))
        grad_inputs[:, tap : tap + length].addcmul_(reached, weights.conv[tap])
    return grad_inputs
