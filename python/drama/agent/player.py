"""Acting in real environments."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from drama.agent.actor_critic import ActorCritic
from drama.models.sequence.base import State
from drama.models.world_model import WorldModel


class Player:
    """Picks actions for a batch of environments, one recurrent step of the world model per frame.

    The actor sees `[z_t, d_{t-1}]`: the posterior of the current frame (or, with `act_on="prior"`, the latent predicted
    for it) and the carried output of the sequence model.
    Both networks must be in evaluation mode.
    """

    def __init__(self, model: WorldModel, agent: ActorCritic, num_envs: int, *, greedy: bool = False) -> None:
        self._model = model
        self._agent = agent
        self._greedy = greedy
        self._act_on = agent.config.act_on
        self._device = next(model.parameters()).device
        self._d = torch.zeros(num_envs, model.width, device=self._device)
        self._state = model.initial_state(num_envs)

    @torch.no_grad()
    def act(self, obs: NDArray[np.uint8], is_first: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Actions `[N]` for frames `obs[N, H, W, C]`; where `is_first[N]` the memory is dropped first."""
        first = torch.from_numpy(is_first).to(self._device)
        z = self._model.sample(self._model.encode(torch.from_numpy(obs).to(self._device)))
        d = self._d * ~self._model.forgets(first)[:, None]
        seen = z
        if self._act_on == "prior":  # nothing predicts the first frame of an episode
            seen = torch.where(first[:, None], z, self._model.sample(self._model.predict_latent(d)))
        action = self._agent.act(torch.cat([seen, d], dim=-1).float(), greedy=self._greedy)
        d, self._state = self._model.step(z, action, first, self._state)
        self._d = d.float()
        result: NDArray[np.int64] = action.cpu().numpy()
        return result

    def get_state(self) -> tuple[torch.Tensor, State]:
        """The memory of all environments, for a checkpoint: tensors in plain tuples."""
        return self._d, _plain(self._state)

    def set_state(self, state: tuple[torch.Tensor, State]) -> None:
        """Go on from what `get_state` returned."""
        self._d, self._state = state


def _plain(state: State) -> State:
    return state if isinstance(state, torch.Tensor) else tuple(_plain(part) for part in state)
