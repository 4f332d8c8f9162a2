"""The training loop: act, store, update, log, checkpoint."""

from __future__ import annotations

import dataclasses
import pickle
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium.spaces import Discrete
from numpy.typing import NDArray
from torch import Tensor

from drama.agent.imagination import dream_frames
from drama.agent.player import Player
from drama.config import Config
from drama.envs import VectorEnv, make_frames
from drama.files import write_atomically
from drama.models.world_model import Batch
from drama.replay import DynamicFrequency, ReplayBuffer, Sampler, Uniform
from drama.runtime.device import resolve_device
from drama.training import checkpoint
from drama.training.learner import Learner
from drama.training.metrics import MetricsWriter
from drama.training.pictures import dream_strip, dream_video

DREAM_ROWS, DREAM_STEPS = 4, 48


class Display(Protocol):
    """Shows the progress of a run."""

    def update(self, step: int, values: dict[str, float]) -> None: ...


class Trainer:
    """One training run in one folder.

    A new run creates the folder; `Trainer.resume` goes on from its last checkpoint. All that decides the future of a
    run is in the checkpoint: networks, optimizers, replay, counters, random states, emulator, and the agent's memory.

    Raises:
        ValueError: for a config that cannot work, or a folder that exists.
    """

    def __init__(self, config: Config, run: Path, *, resume: bool = False) -> None:
        config.validate()
        self.config = config
        self.run = run
        self.device = resolve_device(config.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self._random = np.random.default_rng(config.seed)
        train = config.train
        self._envs = make_frames(config.game, train.num_envs, config.env)
        shape = self._envs.single_observation_space.shape
        assert shape is not None
        self._actions = actions_of(self._envs)
        self.learner = Learner(config, shape[-1], self._actions, self.device)
        self._player = Player(self.learner.world_model, self.learner.agent, train.num_envs, record=train.cuda_graph)
        self._dfs = DynamicFrequency(
            temperature=train.dfs_temperature, ratio=train.batch_size / train.imagination_batch
        )
        dfs = train.sampler == "dfs"
        self._samplers: tuple[Sampler, Sampler] = (
            (self._dfs.world_model, self._dfs.imagination) if dfs else (Uniform(), Uniform())
        )
        self.step = 0
        self._updates = 0
        self._returns = np.zeros(train.num_envs)
        self._lengths = np.zeros(train.num_envs, np.int64)
        self._sums: dict[str, Tensor] = {}
        self._summed = {"world_model": 0, "agent": 0}
        self._memory: dict[str, tuple[dict[str, NDArray[Any]], torch.cuda.Event | None]] = {}
        self._batch: Batch | None = None  # the last that was learned from
        self._stop = False
        self._recent: deque[float] = deque(maxlen=10)
        self._clock = (time.perf_counter(), 0)
        self._frames, _ = self._envs.reset(seed=config.seed)
        self._first = np.ones(train.num_envs, np.bool_)
        if resume and checkpoint.list_checkpoints(run):
            self._load()
        else:
            self._replay = make_replay(config, shape)
        if not resume:
            self._create()

    @staticmethod
    def resume(run: Path, steps: int | None = None) -> Trainer:
        """Go on with the run in the folder `run` from its last checkpoint, up to `steps` instead of the config's.

        A run that was killed before its first checkpoint begins again.
        """
        if not run.is_dir():
            raise ValueError(f"{run}: no such run folder")
        config = Config.load(run / "config.json")
        if steps is not None:
            config = dataclasses.replace(config, steps=steps)
            config.validate()
            write_atomically(run / "config.json", config.to_json())
        return Trainer(config, run, resume=True)

    def train(self, display: Display) -> bool:
        """Train to the last step, or until SIGINT or SIGTERM; saves a checkpoint either way. True if it finished."""
        self._clock = (time.perf_counter(), self.step)
        try:
            with (
                MetricsWriter(self.run, keep_until=self.step) as self._metrics,
                closing(self._envs),
                self._stoppable(),
            ):
                while self.step < self.config.steps and not self._stop:
                    self._act()
                    self._learn()
                    self._report(display)
                self.save()
        except OSError as error:
            raise OSError(f"{error}; stopped at step {self.step}: {self._way_on()}") from error
        return self.step >= self.config.steps

    def save(self) -> Path:
        """Write a checkpoint of this instant. Raises FloatingPointError if a loss or a weight is not finite."""
        self._refuse_infinite(self._means())
        learner = self.learner.state_dict()
        for network in ("world_model", "agent"):
            for name, value in learner[network].items():
                if not torch.isfinite(value).all():
                    raise FloatingPointError(
                        f"{network}.{name} holds values that are not finite at step {self.step}: {self._way_on()}"
                    )
        return checkpoint.save(
            self.run,
            self.step,
            {
                "learner": learner,
                "player": self._player.get_state(),
                "dfs": _tensors(self._dfs.state_dict()),
                "updates": self._updates,
                "returns": torch.from_numpy(self._returns),
                "lengths": torch.from_numpy(self._lengths),
                "sums": self._sums,
                "summed": self._summed,
                "envs": _bytes_to_tensor(pickle.dumps(self._envs.get_state())),
                "frames": torch.from_numpy(self._frames),
                "first": torch.from_numpy(self._first),
                "numpy_random": self._random.bit_generator.state,
                "torch_random": torch.get_rng_state(),
                "cuda_random": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            },
            self._replay,
        )

    def _create(self) -> None:
        if self.run.exists():
            raise ValueError(
                f"{self.run}: this run folder exists; `drama train --resume {self.run}` goes on with it,"
                " --run NAME starts another"
            )
        self.run.mkdir(parents=True)
        write_atomically(self.run / "config.json", self.config.to_json())

    def _load(self) -> None:
        folder = checkpoint.latest(self.run)
        state = checkpoint.load_state(folder, self.device)
        self._replay = ReplayBuffer.load(folder / "replay")
        self.learner.load_state_dict(state["learner"])
        self._player.set_state(state["player"])
        self._dfs.load_state_dict(_arrays(state["dfs"]))
        self.step, self._updates = state["step"], state["updates"]
        self._sums, self._summed = state["sums"], state["summed"]
        self._envs.set_state(pickle.loads(state["envs"].cpu().numpy().tobytes()))
        self._returns, self._lengths, self._frames, self._first = (
            state[name].cpu().numpy() for name in ("returns", "lengths", "frames", "first")
        )
        self._random.bit_generator.state = state["numpy_random"]
        torch.set_rng_state(state["torch_random"].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda_random"]])

    def _act(self) -> None:
        """One step of every environment into the replay: random before the first update, then the agent's."""
        frames, first = self._frames, self._first
        if self.step < self.config.train.start_step:
            actions = self._random.integers(self._actions, size=len(first))
        else:
            with self.learner.autocast:
                actions = self._player.act(frames, first)
        self._frames, rewards, terminated, truncated, infos = self._envs.step(actions)
        store_step(self._replay, frames, actions, rewards, terminated, truncated, infos)
        self.step += len(first)
        self._returns += rewards
        self._lengths += 1
        self._first = terminated | truncated
        for i in np.flatnonzero(self._first):
            episode = {"return": self._returns[i].item(), "length": self._lengths[i].item()}
            self._metrics.write("episode", self.step, episode)
            self._recent.append(episode["return"])
        self._returns[self._first] = 0
        self._lengths[self._first] = 0

    def _due(self, every: int) -> int:
        """How many multiples of `every` the last step of the environments has reached."""
        return self.step // every - (self.step - self.config.train.num_envs) // every

    def _learn(self) -> None:
        """The updates of the world model and of the agent that are due, one of each at a time."""
        if self.step < self.config.train.start_step:
            return
        for _ in range(self._due(self.config.train.train_every)):
            self._update()

    def _update(self) -> None:
        """One update of the world model and one of the agent."""
        train = self.config.train
        if self._updates == 0:
            self.learner.start_from_frames(self._replay.sample(256, 1, sampler=Uniform())["obs"])
        sequences, starts = self._samplers
        batch = self._batch = self._sample("sequences", train.batch_size, train.batch_length, sequences)
        frames: Tensor | None = None
        agent: dict[str, Tensor] = {}
        if train.statistics_frames:
            frames = self._sample("frames", train.statistics_frames, 1, Uniform()).obs
        if self.step < train.agent_start:
            world_model = self.learner.update_world_model(batch, frames)
        elif train.imagine_from == "batch":
            world_model, agent = self.learner.update_together(batch, frames)
        else:
            world_model = self.learner.update_world_model(batch, frames)
            agent = self.learner.update_agent(self._sample("starts", train.imagination_batch, train.context, starts))
        self._updates += 1
        for part, values in (("world_model", world_model), ("agent", agent)):
            self._summed[part] += bool(values)
            for name, value in values.items():
                key = f"{part}/{name}"
                self._sums[key] = self._sums[key] + value if key in self._sums else value

    def _sample(self, name: str, batch_size: int, length: int, sampler: Sampler) -> Batch:
        """Draw a batch into the memory of the last one of that name: fresh memory would cost its page faults.

        For CUDA that memory is pinned, so that the copy from it waits for nothing and nothing for it.
        """
        memory, copied = self._memory.get(name, (None, None))
        if copied is not None:
            copied.synchronize()
        memory = self._replay.sample(batch_size, length, sampler=sampler, out=memory)
        if copied is None and self.device.type == "cuda":
            memory = {key: torch.from_numpy(array).pin_memory().numpy() for key, array in memory.items()}
            copied = torch.cuda.Event()
        batch = self.learner.to_batch(memory)
        if copied is not None:
            copied.record()
        self._memory[name] = memory, copied
        return batch

    def _report(self, display: Display) -> None:
        """Log, picture and save, each when it is due."""
        log = self.config.log
        if self._due(log.log_every):
            values = self._drain_sums()
            began, at = self._clock
            now = time.perf_counter()
            values["steps_per_second"] = (self.step - at) / (now - began)
            values["replay_fill"] = len(self._replay) / self._replay.capacity
            if self._batch is not None:
                values |= self.learner.kl_by_mode(self._batch)
            self._clock = (now, self.step)
            self._metrics.write("train", self.step, values)
            recent = {"episode_return": float(np.mean(self._recent))} if self._recent else {}
            display.update(self.step, values | recent)
        if self._updates and self._due(log.image_every):
            self.write_pictures()
        if self._due(log.checkpoint_every) and self.step < self.config.steps:
            self.save()

    def _drain_sums(self) -> dict[str, float]:
        """The means of the update's scalars since the last call: the only wait for the device."""
        values = self._means()
        self._sums, self._summed = {}, dict.fromkeys(self._summed, 0)
        self._refuse_infinite(values)
        return values

    def _means(self) -> dict[str, float]:
        if not self._sums:
            return {}
        sums = torch.stack([value.float() for value in self._sums.values()]).tolist()
        return {
            name: value / self._summed[name.partition("/")[0]] for name, value in zip(self._sums, sums, strict=True)
        }

    def _refuse_infinite(self, values: dict[str, float]) -> None:
        """Raise FloatingPointError if a loss is not finite; it names the parts of the first such loss that are not."""
        bad = [name for name, value in values.items() if not np.isfinite(value)]
        for loss in bad:
            network, _, scalar = loss.partition("/")
            if scalar == "loss":
                parts = ", ".join(name for name in bad if name.startswith(f"{network}/"))
                raise FloatingPointError(f"{parts} not finite before step {self.step}: {self._way_on()}")

    def _way_on(self) -> str:
        """What a person can do after the run has stopped."""
        found = checkpoint.list_checkpoints(self.run)
        where = f"from step {int(found[-1].name.removeprefix('step-'))}" if found else "from the beginning"
        return f"`drama train --resume {self.run}` goes on {where}"

    def write_pictures(self) -> None:
        """Write a dream video and a strip of it to TensorBoard, from sequences of the replay."""
        train = self.config.train
        steps = min(DREAM_STEPS, train.batch_length)
        batch = self.learner.to_batch(self._replay.sample(DREAM_ROWS, steps, sampler=Uniform()))
        with self.learner.autocast:
            pictures = dream_frames(self.learner.world_model, batch.obs, batch.action, batch.is_first, train.context)
        video = dream_video(batch.obs, *pictures, train.context)
        self._metrics.video("dream", self.step, video)
        self._metrics.image("reconstruction", self.step, dream_strip(video))

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Let the first SIGINT or SIGTERM end the loop after the present step; a second SIGINT ends it at once."""

        def stop(signum: int, frame: Any) -> None:  # noqa: ARG001
            self._stop = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)


def actions_of(envs: VectorEnv) -> int:
    """Number of discrete actions."""
    assert isinstance(envs.single_action_space, Discrete)
    return int(envs.single_action_space.n)


def make_replay(config: Config, shape: tuple[int, ...]) -> ReplayBuffer:
    """The empty replay of a run whose frames have this shape."""
    return ReplayBuffer(
        min(config.train.replay_capacity, config.steps),
        fields={
            "obs": (shape, np.uint8),
            "action": ((), np.int64),
            "reward": ((), np.float32),
            "life_lost": ((), np.bool_),
        },
        num_envs=config.train.num_envs,
        seed=config.seed,
    )


def store_step(
    replay: ReplayBuffer,
    frames: NDArray[np.uint8],
    actions: NDArray[np.int64],
    rewards: NDArray[np.float64],
    terminated: NDArray[np.bool_],
    truncated: NDArray[np.bool_],
    infos: dict[str, Any],
) -> None:
    """Add to a replay from `make_replay` what `envs.step(actions)` returned for the frames before it."""
    life_lost = infos["life_lost"]
    if "final_info" in infos:  # where an episode ended, the info is that of the new one's first frame
        life_lost = np.where(infos["_final_info"], infos["final_info"]["life_lost"], life_lost)
    replay.add(
        obs=frames,
        action=actions,
        reward=rewards.astype(np.float32),
        terminated=terminated,
        truncated=truncated,
        life_lost=life_lost,
    )


def random_play(config: Config, steps: int) -> ReplayBuffer:
    """A replay with `steps` rows of random play on the config's game, for tests and benchmarks."""
    envs = make_frames(config.game, config.train.num_envs, config.env)
    shape = envs.single_observation_space.shape
    assert shape is not None
    replay = make_replay(config, shape)
    random, actions = np.random.default_rng(0), actions_of(envs)
    frames, _ = envs.reset(seed=0)
    while len(replay) < min(steps, replay.capacity):
        action = random.integers(actions, size=envs.num_envs)
        following, rewards, terminated, truncated, infos = envs.step(action)
        store_step(replay, frames, action, rewards, terminated, truncated, infos)
        frames = following
    envs.close()
    return replay


def _tensors(state: dict[str, Any]) -> dict[str, Any]:
    return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in state.items()}


def _arrays(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v.cpu().numpy() if isinstance(v, Tensor) else v for k, v in state.items()}


def _bytes_to_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
