"""Does it learn? Tasks against random play and model-free agents: `python benchmarks/learning.py [--json]`.

Each small task needs something of the world model: to see a small object (Catch), to remember for 20 steps (Recall), to
carry a rare reward back to its causes (Doorway). Others are of Gymnasium: numbers and choices (CartPole), numbers and
continuous actions (Pendulum), a memory (MiniGrid's MemoryS7, which wants the package minigrid). Every seed trains the
preset of the task with its options and number of environment steps, then plays 100 episodes with sampled actions.
Beside it stand random play and agents of Stable-Baselines3 after as many environment steps: its DQN, PPO or SAC with
their defaults, but for what a few thousand steps need. A task is passed by a seed whose mean return is at least the
bound. `--tasks`, `--seeds` and `--agents` choose what runs; the agents named after a choice of the method differ from
`ours` in that alone. `--results FILE` keeps every seed as a line of JSON and does not run again what FILE holds for the
same configuration; its lines of other ones stay. The intervals are Student's, 95 %, over the seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from drama.config import Config, flat, preset, with_options
from drama.envs import env_maker, make_env, read_interface
from drama.results.evaluation import evaluate
from drama.training.trainer import Trainer

EPISODES = 100
EVALUATION_SEED = 1_000_000


@dataclasses.dataclass(frozen=True)
class Task:
    """A game, the steps and the minutes on one core that are enough, and the mean return that counts as solved."""

    game: str
    steps: int
    minutes: float
    bound: float
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    preset: str = "small"
    peers: tuple[str, ...] = ("DQN",)
    """Agents of Stable-Baselines3 beside ours."""

    def config(self, seed: int, **options: Any) -> Config:
        """The preset for this task, with `options` by name."""
        given = {"game": self.game, "steps": self.steps, "seed": seed}
        return with_options(preset(self.preset), given | self.options | options)


def chosen(config: Config, options: str) -> Config:
    """`config` with the options `name=value,name=[value,value]`. Raises SystemExit for one without a value."""
    given = {}
    for option in filter(None, re.split(r",(?![^\[]*\])", options)):  # at the commas outside of brackets
        name, equals, value = option.partition("=")
        if not equals:
            raise SystemExit(f"{option}: expected NAME=VALUE")
        try:
            given[name] = json.loads(value)
        except json.JSONDecodeError:  # a word
            given[name] = value
    return with_options(config, given)


TASKS = {
    "catch": Task("Catch", steps=2000, minutes=3, bound=0.8, options={"agent.entropy": 3e-3}),
    # An imagination must begin with the cue in its memory, or reach the question from it. A policy that settles on one
    # answer before the model knows which is right never learns of the other: it starts late, and keeps more entropy.
    "recall": Task(
        "Recall",
        steps=3000,
        minutes=8,
        bound=0.8,
        options={"train.context": 25, "train.batch_length": 48, "agent.entropy": 1e-2, "train.agent_start": 1500},
    ),
    "doorway": Task(
        "Doorway",
        steps=8000,
        minutes=15,
        bound=0.8,
        options={"train.start_step": 1000, "train.horizon": 14, "agent.entropy": 2e-3},
    ),
    "cartpole": Task("CartPole-v1", steps=15_000, minutes=45, bound=475, preset="vector", peers=("DQN", "PPO")),
    # It must be swung up first, which takes more noise, and is worth it within a few steps.
    "pendulum": Task(
        "Pendulum-v1",
        steps=15_000,
        minutes=45,
        bound=-200,
        options={"agent.entropy": 3e-3, "agent.discount": 0.985, "world_model.vector_scale": 1.0},
        preset="vector",
        peers=("SAC", "PPO"),
    ),
    "memory": Task(
        "MiniGrid-MemoryS7-v0",
        steps=50_000,
        minutes=150,
        bound=0.85,  # of at most about 0.95, as a step costs a little
        options={"env.imports": ("minigrid",), "env.without": ("mission",), "train.context": 16},
        preset="vector",
        peers=("PPO",),
    ),
}


def ours(task: Task, seed: int, **options: Any) -> float:
    """Mean return after training."""
    config = task.config(seed, **options)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder) / "run")
        if not trainer.train():
            raise SystemExit(f"stopped at step {trainer.step} of {config.steps}")
    records = evaluate(config, trainer.learner, episodes=EPISODES, greedy=False, seed=EVALUATION_SEED + seed)
    return statistics.fmean(record["return"] for record in records)


def random_play(task: Task, seed: int) -> float:
    """Mean return of uniformly random actions."""
    env = make_env(task.game, task.config(seed).env)
    action, random = read_interface(env).action, np.random.default_rng(seed)
    env.reset(seed=EVALUATION_SEED + seed)
    total, episodes = 0.0, 0
    while episodes < EPISODES:
        _, reward, terminated, truncated, _ = env.step(action.sample(random, 1)[0])
        total += float(reward)
        if terminated or truncated:
            episodes += 1
            env.reset()
    return total / EPISODES


def model_free(task: Task, seed: int, *, kind: str) -> float:
    """Mean return of an agent of Stable-Baselines3 after as many environment steps."""
    import stable_baselines3
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor

    config = task.config(seed)
    settings: dict[str, dict[str, Any]] = {
        "DQN": {
            "buffer_size": task.steps,
            "learning_starts": config.train.start_step,
            "train_freq": 1,
            "learning_rate": 5e-4,
            "target_update_interval": 250,
            "exploration_fraction": 0.5,
        },
        "PPO": {},
        "SAC": {"learning_starts": config.train.start_step},
    }
    make = env_maker(task.game, config.env)
    agent = getattr(stable_baselines3, kind)("MlpPolicy", Monitor(make()), seed=seed, device="cpu", **settings[kind])
    agent.learn(task.steps)
    mean, _ = evaluate_policy(agent, Monitor(make()), n_eval_episodes=EPISODES)
    assert isinstance(mean, float)
    return mean


CHOICES: dict[str, dict[str, Any]] = {
    "mamba": {"world_model.sequence.backend": "mamba"},
    "transformer": {"world_model.sequence.backend": "transformer"},
    "uniform": {"train.sampler": "uniform"},
    "prior": {"agent.act_on": "prior"},
    "no resets": {"world_model.reset_state": False},
    "ppo": {"agent.policy": "ppo"},
}
AGENTS: dict[str, Callable[[Task, int], float]] = {"ours": ours, "random": random_play}
AGENTS |= {kind: partial(model_free, kind=kind) for kind in ("DQN", "PPO", "SAC")}
AGENTS |= {name: partial(ours, **options) for name, options in CHOICES.items()}


@dataclasses.dataclass(frozen=True)
class Result:
    """One seed of one agent on one task."""

    task: str
    agent: str
    seed: int
    steps: int
    config: str
    mean_return: float
    minutes: float

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What makes it the same run."""
        return self.task, self.agent, self.seed, self.config


def fingerprint(task: Task, seed: int, agent: str) -> str:
    """A short hash of what the configuration of a run has other than the defaults: a new option changes none."""
    plain = flat(Config())
    own = flat(task.config(seed, **CHOICES.get(agent, {})))
    changed = {name: value for name, value in sorted(own.items()) if value != plain[name]}
    return hashlib.sha256(json.dumps(changed).encode()).hexdigest()[:12]


def measure(
    tasks: Sequence[str], seeds: Sequence[int], agents: Sequence[str] | None, known: Sequence[Result]
) -> Iterator[Result]:
    """The chosen results, those that are known first, the others as they come; of ours, random and peers without
    `agents`."""
    there = {result.key: result for result in known}
    chosen_agents = {t: agents or ("ours", "random", *TASKS[t].peers) for t in tasks}
    wanted = [(t, a, s, fingerprint(TASKS[t], s, a)) for s in seeds for t in tasks for a in chosen_agents[t]]
    yield from (there[key] for key in wanted if key in there)
    for name, agent, seed, config in wanted:
        if (name, agent, seed, config) not in there:
            begin = time.perf_counter()
            mean = AGENTS[agent](TASKS[name], seed)
            minutes = (time.perf_counter() - begin) / 60
            yield Result(name, agent, seed, TASKS[name].steps, config, round(mean, 4), round(minutes, 2))


def table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row for each task and agent, over its seeds."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.task, result.agent), []).append(result)
    rows = []
    for (name, agent), group in sorted(groups.items(), key=lambda item: (item[0][0], list(AGENTS).index(item[0][1]))):
        returns = [result.mean_return for result in sorted(group, key=lambda result: result.seed)]
        rows.append(
            {"task": name, "steps": TASKS[name].steps, "bound": TASKS[name].bound, "agent": agent}
            | {"mean": statistics.fmean(returns), "interval": interval(returns)}
            | {"passed": sum(value >= TASKS[name].bound for value in returns)}
            | {"minutes": statistics.fmean(result.minutes for result in group), "minutes_bound": TASKS[name].minutes}
            | {"returns": returns}
        )
    return rows


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % confidence interval of the mean; None for one value."""
    if len(values) < 2:
        return None
    mean, half = statistics.fmean(values), float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values)
    return mean - half / len(values) ** 0.5, mean + half / len(values) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to one below")
    parser.add_argument("--agents", nargs="+", choices=AGENTS, help="by default ours, random, and the task's peers")
    parser.add_argument("--steps", type=int, help="of the environment, instead of the task's")
    parser.add_argument("--results", type=Path, help="a file that keeps every seed")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    if args.steps:
        TASKS.update({name: dataclasses.replace(TASKS[name], steps=args.steps) for name in args.tasks})
    lines = args.results.read_text().splitlines() if args.results and args.results.exists() else []
    known = [Result(**json.loads(line)) for line in lines]
    results = []
    for result in measure(args.tasks, range(args.seeds), args.agents, known):
        results.append(result)
        if args.results and result not in known:
            with args.results.open("a") as file:
                file.write(json.dumps(dataclasses.asdict(result)) + "\n")
    rows = table(results)
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'task':10}{'steps':>6}{'bound':>7}  {'agent':12}{'mean':>6}  {'95 %':16}passed  minutes     each seed")
    for row in rows:
        each = " ".join(f"{value:.2f}" for value in row["returns"])
        span = "" if row["interval"] is None else "{:.2f} to {:.2f}".format(*row["interval"])
        print(
            f"{row['task']:10}{row['steps']:>6}{row['bound']:>7}  {row['agent']:12}{row['mean']:>6.2f}  {span:16}"
            f"{row['passed']:>4}/{len(row['returns'])}{row['minutes']:>9.1f} / {row['minutes_bound']:<4g}{each}"
        )


if __name__ == "__main__":
    main()
