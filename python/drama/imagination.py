"""Rollouts inside the world model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from drama.models.sequence.base import State
from drama.models.world_model import WorldModel


class Policy(Protocol):
    """Anything that picks actions `[B]` from features `[B, features]`."""

    def act(self, features: Tensor) -> Tensor: ...


class Start(NamedTuple):
    """Where an imagination begins: a real frame seen, its action not yet taken."""

    z: Tensor  # [B, latents]
    d: Tensor  # [B, width], the output before this step; zero at an episode start
    is_first: Tensor  # [B] bool
    state: State


class Trajectory(NamedTuple):
    """Imagined steps: everything that belongs to action t has index t."""

    features: Tensor  # [B, H + 1, features], s_t = [z_t, d_{t-1}]
    action: Tensor  # [B, H]
    reward: Tensor  # [B, H]
    cont: Tensor  # [B, H], 0 where action t is predicted to end the episode, else 1
    weight: Tensor  # [B, H], 0 after a predicted end, else 1


@torch.no_grad()
def observe(model: WorldModel, obs: Tensor, action: Tensor, is_first: Tensor) -> Start:
    """Run the model over real steps `obs[B, T, H, W, C]`, `action[B, T]`, `is_first[B, T]`; start at the last frame.

    The last action is not used: the imagination chooses its own.
    """
    return start_from(model, model.sample(model.encode(obs)), action, is_first)


@torch.no_grad()
def start_from(model: WorldModel, z: Tensor, action: Tensor, is_first: Tensor) -> Start:
    """As `observe`, from latents `z[B, T, latents]` that were sampled already."""
    d, state = model(z[:, :-1], action[:, :-1], is_first[:, :-1])
    last_first = is_first[:, -1]
    return Start(z[:, -1], d[:, -1] * ~model.forgets(last_first)[:, None], last_first, state)


@torch.no_grad()
def imagine(model: WorldModel, policy: Policy, start: Start, horizon: int) -> Trajectory:
    """Let `policy` act for `horizon` steps in the model, from `start`. No gradient flows through the model."""
    z, d, is_first, state = start
    features = [torch.cat([z, d], dim=-1).float()]
    actions, outputs = [], []
    for t in range(horizon):
        action = policy.act(features[-1])
        # The start's state belongs to the caller; those that follow are known here only, and may be overwritten.
        d, state = model.step_(z, action, state) if t else model.step(z, action, is_first, state)
        z = model.sample(model.predict_latent(d))
        features.append(torch.cat([z, d], dim=-1).float())
        actions.append(action)
        outputs.append(d)
    reward, termination = model.predict_outcome(torch.stack(outputs, dim=1))
    cont = (termination <= 0).float()
    before = torch.cat([torch.ones_like(cont[:, :1]), cont[:, :-1]], dim=1)
    return Trajectory(
        features=torch.stack(features, dim=1),
        action=torch.stack(actions, dim=1),
        reward=model.two_hot.decode(reward),
        cont=cont,
        weight=before.cumprod(dim=1),
    )


Record = Callable[[Callable[[], Trajectory]], tuple[Callable[[], None], Trajectory]]
"""Takes a function; returns what runs it again, and where its result then lies."""


def record_graph(run: Callable[[], Trajectory]) -> tuple[Callable[[], None], Trajectory]:
    """Record the work that `run` gives to the GPU as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()  # libraries allocate when they are first used, which a recording forbids
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may pin memory meanwhile
        trajectory = run()
    return graph.replay, trajectory


class RecordedImagination:
    """`imagine` as a replayed CUDA graph: one launch in the place of one for each operation of each step.

    A recording is compared once with `imagine`, from the same random state; where it fails or differs, this warns and
    is `imagine` from then on.

    Args:
        model: the world model; its parameters may change in place.
        policy: whose actions are taken; likewise.
        horizon: imagined steps.
        record: how to record.
    """

    def __init__(self, model: WorldModel, policy: Policy, horizon: int, record: Record = record_graph) -> None:
        self._model = model
        self._policy = policy
        self._horizon = horizon
        self._record = record
        self._failed = False
        self._start: Start | None = None

    @torch.no_grad()
    def __call__(self, start: Start) -> Trajectory:
        """As `imagine`; the next call overwrites what this one returns."""
        if self._failed:
            return imagine(self._model, self._policy, start, self._horizon)
        if self._start is None or [t.shape for t in _tensors(self._start)] != [t.shape for t in _tensors(start)]:
            self._start = copy.deepcopy(start)
            return self._first()
        for recorded, given in zip(_tensors(self._start), _tensors(start), strict=True):
            recorded.copy_(given)
        self._replay()
        return self._trajectory

    def _run(self) -> Trajectory:
        assert self._start is not None
        device = self._start.z.device.type
        # Without a cache: the casts of the parameters belong into the recording, as they change.
        with torch.autocast(
            device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), cache_enabled=False
        ):
            return imagine(self._model, self._policy, self._start, self._horizon)

    def _first(self) -> Trajectory:
        """Record, and compare with what is not recorded."""
        assert self._start is not None
        device = self._start.z.device
        try:
            self._replay, self._trajectory = self._record(self._run)
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                expected = self._run()
            self._replay()
            # One step only: in bfloat16 a last bit may choose another latent, and after it everything is different.
            found = self._trajectory.features[:, 1] - expected.features[:, 1]
            problem = None if found.abs().mean() < 0.01 else "differs from what is imagined without it"
        except RuntimeError as error:
            problem = f"fails ({error})"
        if problem is None:
            return self._trajectory
        warnings.warn(f"train.cuda_graph: the recorded imagination {problem}; going on without it", stacklevel=3)
        self._failed = True
        return self._run()


def _tensors(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    else:
        for part in nested:
            yield from _tensors(part)
