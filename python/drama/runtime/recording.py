"""Work for the GPU, recorded once as a CUDA graph and replayed: one launch in the place of one for each operation."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Inputs = TypeVar("Inputs")
Result = TypeVar("Result")
Work = Callable[[], Result]
Record = Callable[[Work[Result]], tuple[Callable[[], None], Result]]
"""Takes work; returns what does it again, and where its result then lies."""

AGREES = 0.01
"""How far the result of a recording may be from that of the work: atomic additions come in any order."""


def uncached(work: Callable[[Inputs], Result]) -> Callable[[Inputs], Result]:
    """`work` under the present autocast but without its cache: casts of what changes belong into a recording."""

    def run(inputs: Inputs) -> Result:
        device = next(_tensors(inputs)).device.type
        with torch.autocast(
            device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), cache_enabled=False
        ):
            return work(inputs)

    return run


def record_graph(work: Work[Result]) -> tuple[Callable[[], None], Result]:
    """Record what `work` gives to the GPU as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()  # libraries allocate when they are first used, which a recording forbids
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may pin memory meanwhile
        result = work()
    return graph.replay, result


class Recorded(Generic[Inputs, Result]):
    """A function of tensors as a recording, for inputs of one shape.

    A recording is compared once with the function, from the same random state; where it fails or differs, this warns
    and is the function from then on.

    Args:
        name: what is recorded, for the warning.
        function: may read other tensors than its inputs, which may change in place; must not wait for the device. What
            it changes itself, such as running statistics, a recording changes several times.
        difference: of two results from the same random numbers; no more than `AGREES` if they are the same.
        record: how to record.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Inputs], Result],
        difference: Callable[[Result, Result], Tensor],
        record: Record[Result] = record_graph,
    ) -> None:
        self._name = name
        self._function = function
        self._difference = difference
        self._record = record
        self._failed = False
        self._inputs: Inputs | None = None

    def __call__(self, inputs: Inputs) -> Result:
        """What the function returns; the next call overwrites it."""
        if self._failed:
            return self._function(inputs)
        if self._inputs is None or _shapes(self._inputs) != _shapes(inputs):
            self._inputs = copy.deepcopy(inputs)
            return self._first(self._inputs)
        for recorded, given in zip(_tensors(self._inputs), _tensors(inputs), strict=True):
            recorded.copy_(given)
        self._replay()
        return self._result

    def _first(self, inputs: Inputs) -> Result:
        """Record, and compare with what is not recorded."""
        device = next(_tensors(inputs)).device
        try:
            self._replay, self._result = self._record(lambda: self._function(inputs))
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                expected = self._function(inputs)
            self._replay()
            problem = "differs from what comes without it"
            if self._difference(self._result, expected) <= AGREES:
                return self._result
        except RuntimeError as error:
            problem = f"fails ({error})"
        warnings.warn(f"train.cuda_graph: the recorded {self._name} {problem}; going on without it", stacklevel=3)
        self._failed = True
        return self._function(inputs)


def _shapes(nested: Any) -> list[torch.Size]:
    return [tensor.shape for tensor in _tensors(nested)]


def _tensors(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif nested is not None:
        for part in nested.values() if isinstance(nested, dict) else nested:
            yield from _tensors(part)
