"""The optimizer of both networks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class LaProp(torch.optim.Optimizer):
    """LaProp (arXiv 2002.04839, algorithm 1): momentum of gradients that are divided by their root mean square first.

    No step waits for the device: the host knows every factor. Its updates equal `pytorch_optimizer`'s.

    Args:
        params: parameters, or groups of them.
        lr: learning rate; a schedule may change it.
        betas: decay of the momentum and of the mean square.
        eps: added to the root mean square.
        floor: added to the mean square, so that gradients of about its root and smaller move a parameter less. Without
            it these, mostly noise, count as much as all others, and `benchmarks/learning.py` does not learn Recall.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-20,
        floor: float = 1e-15,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "floor": floor, "updates": 0, "mean_lr": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        del closure
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in params]
            for p in params:
                if not self.state[p]:
                    self.state[p] = {"momentum": torch.zeros_like(p), "mean_square": torch.zeros_like(p)}
            momenta, squares = ([self.state[p][name] for p in params] for name in ("momentum", "mean_square"))
            lr, (beta1, beta2) = group["lr"], group["betas"]
            group["updates"] += 1
            # The weights in the momentum add up to this; dividing by it corrects the start from zero.
            group["mean_lr"] = beta1 * group["mean_lr"] + (1 - beta1) * lr
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
            roots = torch._foreach_add(squares, group["floor"])
            torch._foreach_sqrt_(roots)
            torch._foreach_add_(roots, group["eps"])
            torch._foreach_div_(roots, math.sqrt(1 - beta2 ** group["updates"]))
            torch._foreach_mul_(momenta, beta1)
            torch._foreach_addcdiv_(momenta, grads, roots, (1 - beta1) * lr)
            if lr:
                torch._foreach_add_(params, momenta, alpha=-lr / group["mean_lr"])
