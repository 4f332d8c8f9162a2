"""Acting in real environments."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from drama.agent.actor_critic import ActorCritic
from drama.models.sequence.base import State
from drama.models.world_model import WorldModel
from drama.runtime.device import one_thread
from drama.runtime.recording import Recorded, uncached

FEW = 8
"""Environments whose frames one thread encodes sooner than several do."""


class Player:
    """Picks actions for a batch of environments, one recurrent step of the world model per frame.

    The actor sees `[z_t, d_{t-1}]`: the posterior of the current frame (or, with `act_on="prior"`, the latent predicted
    for it) and the carried output of the sequence model.
    Both networks must be in evaluation mode. With `record` a CUDA device replays one recording for each step.
    """

    def __init__(
        self, model: WorldModel, agent: ActorCritic, num_envs: int, *, greedy: bool = False, record: bool = False
    ) -> None:
        self._model = model
        self._agent = agent
        self._greedy = greedy
        self._act_on = agent.config.act_on
        self._device = next(model.parameters()).device
        self._d = torch.zeros(num_envs, model.width, device=self._device)
        self._state = model.initial_state(num_envs)
        self._next: Callable[[Seen], Acted] = self._act
        if record and self._device.type == "cuda":
            self._next = Recorded(
                "acting", uncached(self._act), lambda found, expected: (found.d - expected.d).abs().max()
            )

    def act(self, obs: NDArray[np.uint8], is_first: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Actions `[N]` for frames `obs[N, H, W, C]`; where `is_first[N]` the memory is dropped first."""
        frames, first = (torch.from_numpy(array).to(self._device) for array in (obs, is_first))
        with one_thread() if len(obs) <= FEW else nullcontext():
            action, self._d, self._state = self._next(Seen(frames, first, self._d, self._state))
        result: NDArray[np.int64] = action.cpu().numpy()
        return result

    @torch.no_grad()
    def _act(self, seen: Seen) -> Acted:
        frames, first, d, state = seen
        z = self._model.sample(self._model.encode(frames))
        d = d * ~self._model.forgets(first)[:, None]
        shown = z
        if self._act_on == "prior":  # nothing predicts the first frame of an episode
            shown = torch.where(first[:, None], z, self._model.sample(self._model.predict_latent(d)))
        action = self._agent.act(torch.cat([shown, d], dim=-1).float(), greedy=self._greedy)
        d, state = self._model.step(z, action, first, state)
        return Acted(action, d.float(), state)

    def get_state(self) -> tuple[torch.Tensor, State]:
        """The memory of all environments, for a checkpoint: tensors in plain tuples."""
        return self._d, _plain(self._state)

    def set_state(self, state: tuple[torch.Tensor, State]) -> None:
        """Go on from what `get_state` returned."""
        self._d, self._state = state


class Seen(NamedTuple):
    """What an action is chosen from."""

    frames: torch.Tensor  # [N, H, W, C] uint8
    first: torch.Tensor  # [N] bool
    d: torch.Tensor  # [N, width]
    state: State


class Acted(NamedTuple):
    """The actions `[N]`, and the memory after them."""

    action: torch.Tensor
    d: torch.Tensor
    state: State


def _plain(state: State) -> State:
    return state if isinstance(state, torch.Tensor) else tuple(_plain(part) for part in state)
