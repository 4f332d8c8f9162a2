"""Acting in real environments."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from drama.agent.actor_critic import ActorCritic
from drama.interface import Observations
from drama.models.observation import Parts
from drama.models.sequence.base import State
from drama.models.world_model import Belief, WorldModel
from drama.runtime.compiling import Compiled
from drama.runtime.device import one_thread
from drama.runtime.recording import Recorded, uncached

FEW = 8
"""Environments whose frames one thread encodes sooner than several do."""


class Seen(NamedTuple):
    """What an action is chosen from."""

    obs: Parts  # by part, [N, ...]
    first: torch.Tensor  # [N] bool
    belief: Belief  # after the step before


class Acted(NamedTuple):
    """The actions `[N]` or `[N, K]`, and the belief after them."""

    action: torch.Tensor
    belief: Belief


class Player:
    """Picks actions for a batch of environments, one recurrent step of the world model per observation.

    The actor sees `[z_t, d_{t-1}]`: the posterior of the present observation (or, with `act_on="prior"`, the latent
    predicted for it) and the carried output of the sequence model. Both networks must be in evaluation mode. With
    `record` a CUDA device replays one recording for each step; with `compile` each step is compiled.
    """

    def __init__(
        self,
        model: WorldModel,
        agent: ActorCritic,
        num_envs: int,
        *,
        greedy: bool = False,
        record: bool = False,
        compile: bool = False,
    ) -> None:
        self._model = model
        self._agent = agent
        self._greedy = greedy
        self._act_on = agent.config.act_on
        self._belief = model.initial_belief(num_envs)._replace(first=None)
        self._next: Callable[[Seen], Acted] = self._act
        if record and model.device.type == "cuda":
            self._next = Recorded(
                "acting", uncached(self._act), lambda found, expected: (found.belief.d - expected.belief.d).abs().max()
            )
        elif compile:
            self._next = Compiled("acting", lambda c: c(self._act))

    def act(self, obs: Observations, is_first: NDArray[np.bool_]) -> NDArray[Any]:
        """Actions `[N]` or `[N, K]` for observations by part; where `is_first[N]` the memory is dropped first."""
        device = self._model.device
        # In one order: a recording knows its inputs by their places.
        parts = {name: torch.from_numpy(obs[name]).to(device) for name in self._model.interface.observation}
        first = torch.from_numpy(is_first).to(device)
        with self._setting(len(is_first)):
            action, self._belief = self._next(Seen(parts, first, self._belief))
        result: NDArray[Any] = action.cpu().numpy()
        return result

    def _setting(self, count: int) -> AbstractContextManager[object]:
        """Threads and precision: on a CPU, for few environments, to wake threads or to lower weights takes longer."""
        if self._model.device.type == "cpu" and count <= FEW:
            return one_thread()
        return self._model.autocast()

    @torch.no_grad()
    def _act(self, seen: Seen) -> Acted:
        predicted = seen.belief.z
        belief = self._model.observe(seen.belief, seen.obs, seen.first)
        shown = belief
        if self._act_on == "prior":  # nothing predicts the first observation of an episode
            shown = belief._replace(z=torch.where(seen.first[:, None], belief.z, predicted))
        action = self._agent.act(shown.features, greedy=self._greedy)
        return Acted(action, self._model.advance(belief, action))

    def get_state(self) -> tuple[torch.Tensor, torch.Tensor, State]:
        """The memory of all environments, for a checkpoint: tensors in plain tuples."""
        return self._belief.z, self._belief.d, _plain(self._belief.state)

    def set_state(self, state: tuple[torch.Tensor, torch.Tensor, State]) -> None:
        """Go on from what `get_state` returned."""
        z, d, memory = state
        self._belief = Belief(z, d, None, memory)


def _plain(state: State) -> State:
    return state if isinstance(state, torch.Tensor) else tuple(_plain(part) for part in state)
