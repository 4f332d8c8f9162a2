"""The sequence models, their projections and peers: `python benchmarks/sequence_models.py [--only step] [--json]`.

Everything is measured in turns in this process; the table gives median times, and the median of our time over the
other's. The limit of a layer is its two matrix products alone. `--plot FILE` draws time and memory per token over the
length (needs matplotlib). Hugging Face's layer is left out where `transformers` is not installed, the section `kernels`
without CUDA and `mamba_ssm`; the others run on the CPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from drama.config import SequenceConfig
from drama.models.sequence import build
from drama.models.sequence.kernels import Kernels, scan_kernel
from drama.models.sequence.mamba2 import Mamba2
from timing import Part, Parts, Row, compare, elapsed, show

WIDTH, HEADS, HEADDIM = 512, 16, 64
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
BACKENDS = ("mamba2", "mamba", "transformer")


@dataclass
class Cost:
    """One point of the curves: a stack of two layers, forward and backward, one sequence."""

    backend: str
    length: int
    seconds_per_token: float
    saved_bytes_per_token: float
    """What the forward pass keeps for the backward pass."""


def descend(forward: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor, grad: Tensor) -> None:
    """Forward and backward, down to the input and the parameters."""
    module.zero_grad(set_to_none=True)
    forward(x.detach().requires_grad_()).backward(grad)


def project(layer: Mamba2, x: Tensor, inner: Tensor, grad_inner: Tensor, grad: Tensor) -> None:
    """The layer's two matrix products alone, forward and backward."""
    descend(layer.in_proj, layer.in_proj, x, grad_inner)
    descend(layer.out_proj, layer.out_proj, inner, grad)


def hugging_face(state: int, x: Tensor, grad: Tensor) -> Parts:
    """Its layer of the same sizes, in PyTorch."""
    try:
        from transformers import Mamba2Config
        from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
    except ImportError:
        return {}
    config = Mamba2Config(
        hidden_size=WIDTH, expand=2, num_heads=HEADS, head_dim=HEADDIM, state_size=state, n_groups=1, chunk_size=64,
        conv_kernel=4, use_bias=False,
    )  # fmt: skip
    mixer = Mamba2Mixer(config, layer_idx=0)
    return {"Hugging Face Mamba2Mixer": partial(descend, mixer, mixer, x, grad)}


def block(batch: int, length: int, state: int, peer: bool, seconds: float) -> list[Row]:
    """One Mamba-2 layer, forward and backward."""
    layer = Mamba2(WIDTH, d_state=state, headdim=HEADDIM)
    x, grad = torch.randn(batch, length, WIDTH), torch.randn(batch, length, WIDTH)
    inner, grad_inner = torch.randn(batch, length, 2 * WIDTH), torch.randn(batch, length, layer.in_proj.out_features)
    is_first = torch.rand(batch, length) < 1e-3
    parts: Parts = {
        "ours": partial(descend, lambda v: layer(v)[0], layer, x, grad),
        "ours, with episode starts": partial(descend, lambda v: layer(v, is_first)[0], layer, x, grad),
        "limit: the two projections": partial(project, layer, x, inner, grad_inner, grad),
        **(hugging_face(state, x, grad) if peer else {}),
    }
    return compare("block", f"{batch} x {length}, state {state}, forward + backward", parts, seconds)


def blocks(seconds: float) -> list[Row]:
    """The batches of the world model and of the imagination's context."""
    table = []
    for batch, length, state in ((16, 128, 16), (16, 128, 128)):
        table += block(batch, length, state, True, seconds)
    return table


def contexts(seconds: float) -> list[Row]:
    """Many short sequences."""
    return block(1024, 8, 16, False, seconds) + block(1024, 8, 128, True, seconds)


@torch.no_grad()
def steps(seconds: float) -> list[Row]:
    """One token of 1024 streams, without gradient, as imagination runs it."""
    table = []
    for state in (16, 128):
        layer = Mamba2(WIDTH, d_state=state, headdim=HEADDIM)
        x, inner = torch.randn(1024, WIDTH), torch.randn(1024, 2 * WIDTH)
        memory = layer.initial_state(1024)

        def projections(layer: Mamba2 = layer, x: Tensor = x, inner: Tensor = inner) -> None:
            with torch.no_grad():
                layer.in_proj(x)
                layer.out_proj(inner)

        parts: Parts = {
            "ours, over the old state": partial(layer.step_, x, None, memory),
            "ours, into a new state": partial(torch.no_grad()(layer.step), x, None, memory),
            "limit: the two projections": projections,
        }
        table += compare("step", f"batch 1024, state {state}", parts, seconds)
    return table


def on_cuda(layer: Mamba2, x: Tensor, is_first: Tensor, grad: Tensor, kernels: Kernels) -> None:
    """Forward and backward in bfloat16, and wait for it."""
    layer.kernels = kernels
    with torch.autocast("cuda", torch.bfloat16):
        descend(lambda v: layer(v, is_first)[0].float(), layer, x, grad)
    torch.cuda.synchronize()


def kernels(seconds: float) -> list[Row]:
    """One Mamba-2 layer on CUDA in bfloat16: PyTorch against `mamba_ssm`'s kernels; empty where either is missing."""
    if not torch.cuda.is_available() or scan_kernel("auto", torch.device("cuda")) is None:
        return []
    table = []
    for batch, length, state in ((16, 128, 16), (16, 128, 128), (1024, 8, 16), (16, 1024, 16), (16, 1024, 128)):
        layer = Mamba2(WIDTH, d_state=state, headdim=HEADDIM).cuda()
        x, grad = (torch.randn(batch, length, WIDTH, device="cuda") for _ in range(2))
        is_first = torch.rand(batch, length, device="cuda") < 1e-3
        parts: Parts = {
            "ours, PyTorch": partial(on_cuda, layer, x, is_first, grad, "portable"),
            "ours, with mamba_ssm's kernels": partial(on_cuda, layer, x, is_first, grad, "mamba_ssm"),
        }
        table += compare("kernels", f"{batch} x {length}, state {state}, forward + backward", parts, seconds)
    return table


def cost(backend: str, length: int, batch: int, repeats: int) -> Cost:
    """Time and memory per token of one backend at one length."""
    model = build(SequenceConfig(backend=backend, width=WIDTH, window=length))
    x, grad = torch.randn(batch, length, WIDTH), torch.randn(batch, length, WIDTH)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(x.requires_grad_())[0]
    for parameter in model.parameters():
        saved.pop(parameter.untyped_storage().data_ptr(), None)
    y.backward(grad)
    part: Part = partial(descend, lambda v: model(v)[0], model, x, grad)
    seconds = min(elapsed(part, 1) for _ in range(repeats))
    tokens = batch * length
    return Cost(backend, length, seconds / tokens, sum(saved.values()) / tokens)


def costs(longest: int, batch: int, repeats: int) -> list[Cost]:
    """Points of all curves. The transformer attends to the whole sequence, as the recurrent models remember it."""
    return [cost(b, length, batch, repeats) for b in BACKENDS for length in LENGTHS if length <= longest]


def show_costs(table: list[Cost]) -> None:
    """Print the curves."""
    print("\ntwo layers, one token of a sequence, forward + backward")
    for row in table:
        print(
            f"  {row.backend:12} length {row.length:5} {1e6 * row.seconds_per_token:9.1f} µs "
            f"{row.saved_bytes_per_token / 1e3:9.1f} kB kept"
        )


def plot(table: list[Cost], path: Path) -> None:
    """Draw the curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for backend in BACKENDS:
        rows = [row for row in table if row.backend == backend]
        lengths = [row.length for row in rows]
        left.loglog(lengths, [1e6 * row.seconds_per_token for row in rows], marker="o", label=backend)
        right.loglog(lengths, [row.saved_bytes_per_token / 1e3 for row in rows], marker="o", label=backend)
    for axes, what in ((left, "µs per token"), (right, "kB kept per token")):
        axes.set(xlabel="sequence length", ylabel=what)
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
    left.legend()
    figure.savefig(path, dpi=130)


SECTIONS: dict[str, Callable[[float], list[Row]]] = {
    "block": blocks,
    "context": contexts,
    "step": steps,
    "kernels": kernels,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*SECTIONS, "length"], help="one section")
    parser.add_argument("--seconds", type=float, default=10.0, help="for one comparison")
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], help="longest sequence of the curves")
    parser.add_argument("--batch", type=int, default=1, help="sequences of the curves")
    parser.add_argument("--repeats", type=int, default=3, help="of each point of the curves, whose least time counts")
    parser.add_argument("--plot", type=Path, help="draw the curves into this file")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    table = [row for name, part in SECTIONS.items() if args.only in (None, name) for row in part(args.seconds)]
    if args.only == "kernels" and not table:
        parser.error("--only kernels: needs a CUDA device and mamba_ssm")
    curves = costs(args.longest, args.batch, args.repeats) if args.only in (None, "length") else []
    if args.plot:
        plot(curves, args.plot)
    if args.json:
        found = {"threads": torch.get_num_threads(), "rows": [asdict(row) for row in table]}
        print(json.dumps(found | {"lengths": [asdict(row) for row in curves]}, indent=2))
        return
    show(table)
    if curves:
        show_costs(curves)


if __name__ == "__main__":
    main()
