"""A trained agent as a value: load it, give it observations, get actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from drama.agent.player import Player
from drama.config import Config
from drama.envs import Adapted, MakeEnv, give, make_env, runs_code
from drama.interface import Image, Interface
from drama.results.evaluation import load_learner
from drama.results.hub import local
from drama.runtime.device import random_from
from drama.training.weights import is_export


class Agent:
    """A trained agent with its memory. `drama.load` makes it.

    Attributes:
        config: of its run.
        interface: what its world model sees and does.
        step: of the environment up to which it was trained.
    """

    def __init__(
        self,
        run: Path,
        *,
        checkpoint: int | None = None,
        device: str = "auto",
        greedy: bool = False,
        seed: int = 0,
        env: MakeEnv | None = None,
    ) -> None:
        self.config: Config
        self.config, self._learner, self.step = load_learner(run, device, checkpoint, trust=True)  # makes none
        self.interface: Interface = self._learner.world_model.interface
        self._greedy = greedy
        with random_from(seed, self._learner.device):
            self._random = _states(self._learner.device)
        self._player: Player | None = None
        self._count: int | None = None
        self._adapter = None
        try:
            if env is None and is_export(run) and runs_code(self.config.game, self.config.env):
                return
            if env is not None:
                give(self.config.game, env)
            made = make_env(self.config.game, self.config.env)
        except ValueError:  # not here: observations must come as the interface has them
            if env is not None:
                raise
            return
        if isinstance(made, Adapted):
            if made.interface != self.interface:
                raise ValueError(
                    f"{run}: the agent has learned from another environment than {self.config.game} is now"
                )
            self._adapter = made.adapter
        made.close()

    def __repr__(self) -> str:
        config = self.config
        mode = "greedy" if self._greedy else "sampled"
        return f"<Agent of {config.game}, preset {config.preset}, {self.step:,} steps, {mode}, {self._learner.device}>"

    def act(self, observation: Any, first: bool | NDArray[np.bool_] | None = None) -> Any:
        """The action for an observation of the environment, or those for a batch of several environments.

        The agent remembers what it has seen and done. With the same number of environments as at the last call, the
        observation follows the action that was given then, unless `first` says otherwise.

        Args:
            observation: as the environment gives it; or, of N environments, as Gymnasium's vector environments give
                them. Of Atari games and small tasks those of `drama.envs`.
            first: whether it is the first of an episode: one for all, or `[N]`. None: only at the first call.

        Returns:
            An action as the environment takes it, or N of them in an array or list.

        Raises:
            ValueError: the observation does not fit the environment.
        """
        single, rows = self._rows(observation)
        count = len(rows)
        if not count:
            raise ValueError("observation: got that of no environment")
        if self._player is None or count != self._count:
            model = self._learner.world_model
            self._player, self._count = Player(model, self._learner.agent, count, greedy=self._greedy), count
            first = np.ones(count, np.bool_) if first is None else first
        given = np.asarray(False if first is None else first)
        if given.shape not in ((), (count,)):
            raise ValueError(f"first: got shape {given.shape} for the observations of {count} environments")
        flags = np.zeros(count, np.bool_)
        flags[:] = given
        batch = {name: np.stack([row[name] for row in rows]) for name in self.interface.observation}
        with random_from(0, self._learner.device):
            _set_states(self._random)
            actions = self._player.act(batch, flags)
            self._random = _states(self._learner.device)
        if self._adapter is None:
            return actions[0] if single else actions
        native = [self._adapter.native(action) for action in actions]
        return native[0] if single else np.stack(native)

    def reset(self) -> None:
        """Forget everything seen; the next observation is the first of an episode."""
        self._player = None

    def _rows(self, observation: Any) -> tuple[bool, list[dict[str, NDArray[Any]]]]:
        """Whether it is that of one environment, and each environment's observation by part."""
        if self._adapter is not None:
            if self._adapter.fits(observation):
                return True, [self._adapter.parts(observation, 0)]
            return False, [self._adapter.parts(one, 0) for one in self._adapter.split(observation)]
        parts = self.interface.parts(observation)
        counts = set()
        for name, part in self.interface.observation.items():
            if name not in parts:
                expected = f"expected {', '.join(self.interface.observation)} (`agent.interface`)"
                if runs_code(self.config.game, self.config.env):
                    expected += "; drama.load(..., env=...) takes observations as the environment gives them"
                raise ValueError(f"observation: {name!r} is missing, got {', '.join(map(str, parts))}, {expected}")
            shape = np.shape(parts[name])
            kind = "image" if isinstance(part, Image) else "vector"
            if shape[-len(part.shape) :] != part.shape or len(shape) > len(part.shape) + 1:
                raise ValueError(f"observation: {kind} {name!r} has shape {shape}, expected {part.shape} or [N, ...]")
            counts.add(shape[0] if len(shape) > len(part.shape) else None)
        if len(counts) != 1:
            raise ValueError(f"observation: its parts are of different numbers of environments: {counts}")
        (count,) = counts
        arrays = {name: np.asarray(parts[name], part.dtype) for name, part in self.interface.observation.items()}
        if count is None:
            return True, [arrays]
        return False, [{name: array[i] for name, array in arrays.items()} for i in range(count)]


def _states(device: torch.device) -> list[torch.Tensor]:
    """Torch's random states, on the CPU and on the device."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def _set_states(states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])


def load(
    run: str | Path,
    *,
    checkpoint: int | None = None,
    device: str = "auto",
    greedy: bool = False,
    seed: int = 0,
    env: MakeEnv | None = None,
) -> Agent:
    """Load the agent of a run, or of an exported folder.

    Args:
        run: the folder, or `hf://owner/name` of an export on the Hugging Face hub (extra `hub`).
        checkpoint: step of the checkpoint; None is the last.
        device: `auto`, `cpu` or `cuda`.
        greedy: the most probable actions instead of samples.
        seed: of what the agent samples, which is its own: it neither takes torch's random numbers nor changes them.
        env: a function or class that makes the environment. An export, which may be somebody else's, imports nothing to
            make one; without it the agent takes and gives what `Agent.interface` says.

    Raises:
        ValueError: nothing can be read there.
    """
    return Agent(local(run), checkpoint=checkpoint, device=device, greedy=greedy, seed=seed, env=env)
