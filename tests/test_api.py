"""`drama.train` and `drama.load` in real environments: callbacks, threads, resumes, failures on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import drama
from drama.choosing import choose_preset, make_config
from drama.config import EnvConfig
from drama.interface import Continuous
from drama.results.dream import dream_run
from drama.results.evaluation import evaluate_run
from drama.results.play import Dream, action_for, watch
from drama.training import checkpoint
from drama.training.trainer import EnvFailed, Trainer

TINY: dict[str, Any] = {
    "device": "cpu",
    "world_model.vector.units": 16,
    "log.eval_episodes": 1,
    "log.eval_envs": 1,
    "env.grayscale": False,
}


class Mixed(gymnasium.Env[Any, Any]):
    """A picture, numbers and choices; several choices to act on. Ends after 20 steps."""

    observation_space = spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (3, 40, 40), np.uint8),
            "speed": spaces.Box(-5, 5, (2,), np.float32),
            "gear": spaces.Discrete(3),
        }
    )
    action_space = spaces.MultiDiscrete([2, 3])

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._steps = 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        return self._seen(), float(action[0]), self._steps == 20, False, {}

    def _seen(self) -> dict[str, Any]:
        return {
            "camera": self.np_random.integers(0, 256, (3, 40, 40), np.uint8),
            "speed": self.np_random.normal(size=2).clip(-5, 5).astype(np.float32),
            "gear": self._steps % 3,
        }


def quickly(env: Any, run: Path, steps: int = 100, **options: Any) -> drama.Run:
    return drama.train(env, steps=steps, preset="debug", run=run, progress=False, options=TINY | options)


@pytest.fixture(scope="module", params=["CartPole-v1", "Pendulum-v1", Mixed], ids=str)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> drama.Run:
    return quickly(request.param, tmp_path_factory.mktemp("runs") / "run")


def test_every_kind_of_environment_goes_all_the_way(run: drama.Run) -> None:
    """Training, evaluation, dreams, watching, playing in the dream."""
    assert run.finished
    assert run.step == 100
    losses = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert any("world_model/vector" in line for line in losses)
    result = evaluate_run(run.path, episodes=2, device="cpu")
    assert len(result["episodes"]) == 2
    assert result["human_normalised_mean"] is None
    video = dream_run(run.path, steps=8, context=3, skip=2, seed=0, device="cpu")
    assert video.shape[0] == 8
    assert video.std() > 0
    steps = list(watch(run.path, episodes=1, greedy=None, seed=0, device="cpu"))
    assert len(steps) > 5
    assert all(played.picture.ndim == 3 for played in steps)
    dream = Dream(run.path, seed=0, device="cpu")
    before = dream.frame
    for keys in ({"RIGHT"}, {"1"}, set()):
        dream.step(action_for(keys, dream.interface))
    assert dream.steps == 3
    assert dream.frame.shape == before.shape
    assert not np.array_equal(dream.frame, before)


def test_an_agent_acts_on_what_the_environment_shows(run: drama.Run) -> None:
    agent = drama.load(run.path, device="cpu")
    config = agent.config

    def make() -> gymnasium.Env[Any, Any]:
        return Mixed() if "Mixed" in config.game else gymnasium.make(config.game)

    env = make()
    observation, _ = env.reset(seed=0)
    first: Any = True
    for _ in range(12):
        action = agent.act(observation, first)
        assert env.action_space.contains(action)
        observation, _, terminated, truncated, _ = env.step(action)
        first = terminated or truncated
        if first:
            observation, _ = env.reset()
    envs = gymnasium.vector.SyncVectorEnv([make] * 3)
    observations, _ = envs.reset(seed=0)
    flags: Any = np.ones(3, np.bool_)
    for _ in range(4):
        actions = agent.act(observations, flags)
        assert len(actions) == 3
        observations, _, over, cut, _ = envs.step(actions)
        flags = over | cut


def test_the_memory_is_the_agents(tmp_path: Path) -> None:
    """The same observations after another past give other actions; two agents of one seed are alike."""
    done = quickly("Pendulum-v1", tmp_path / "run")
    seen = [np.array([np.cos(x), np.sin(x), x], np.float32) for x in np.linspace(-1, 1, 6)]

    def play(first: list[bool]) -> list[float]:
        agent = drama.load(done.path, device="cpu", greedy=True)
        return [float(agent.act(o, f)[0]) for o, f in zip(seen, first, strict=True)]

    start = play([True] + [False] * 5)
    assert play([True] + [False] * 5) == start
    assert play([True] * 6) != start
    agent = drama.load(done.path, device="cpu", greedy=True)
    assert float(agent.act(seen[0])[0]) == start[0]
    agent.act(seen[1])
    agent.reset()
    assert agent._player is None


def test_an_observation_that_does_not_fit_is_named(run: drama.Run) -> None:
    agent = drama.load(run.path, device="cpu")
    with pytest.raises(ValueError, match="observation"):
        agent.act(np.zeros((2, 7), np.float32))


def test_an_export_is_the_agent(run: drama.Run, tmp_path: Path) -> None:
    from drama.results.export import export_run

    out = export_run(run.path, tmp_path / "out")
    assert {path.name for path in out.iterdir()} >= {"config.json", "interface.json", "model.safetensors"}
    there, here = drama.load(out, device="cpu"), drama.load(run.path, device="cpu")
    assert there.step == here.step == 100
    for network in ("world_model", "agent"):
        left, right = (getattr(agent._learner, network).state_dict() for agent in (there, here))
        for name, value in right.items():
            assert (left[name].float() - value.float()).abs().max() <= 1e-3 * (1 + value.float().abs().max())
    assert len(evaluate_run(out, episodes=1, device="cpu")["episodes"]) == 1
    with pytest.raises(ValueError, match="holds something"):
        export_run(run.path, out)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[: len(data) // 2], "damaged, or no safetensors file"),
        (lambda _: b"nothing of the kind", "damaged, or no safetensors file"),
        (lambda data: data.replace(b'"format":"1"', b'"format":"9"'), "format 9, this package reads format 1"),
    ],
)
def test_damaged_weights_are_refused(run: drama.Run, tmp_path: Path, damage: Any, said: str) -> None:
    from drama.results.export import export_run

    out = export_run(run.path, tmp_path / "out")
    path = out / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=said):
        drama.load(out, device="cpu")


class Watching(drama.Callback):
    """Counts what it is told of; stops at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.seen: dict[str, int] = {}
        self.stop_at = stop_at

    def _note(self, what: str, *_: object) -> None:
        self.seen[what] = self.seen.get(what, 0) + 1

    def on_start(self, trainer: Trainer) -> None:
        self._note("start", trainer)

    def on_step(self, trainer: Trainer) -> None:
        self._note("step")
        if trainer.step == self.stop_at:
            trainer.stop()

    def on_episode(self, trainer: Trainer, episode: Mapping[str, float]) -> None:
        self._note("episode", trainer)
        assert episode["length"] > 0

    def on_update(self, trainer: Trainer) -> None:
        self._note("update", trainer)

    def on_log(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        self._note("log", trainer)
        assert values["steps_per_second"] > 0

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        self._note("checkpoint")
        assert path == checkpoint.latest(trainer.run)

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        self._note("end" if error is None else type(error).__name__, trainer)


def test_callbacks_see_everything_and_may_stop_a_run(tmp_path: Path) -> None:
    watching = Watching(stop_at=90)
    done = drama.train(
        "CartPole-v1",
        steps=120,
        preset="debug",
        run=tmp_path / "run",
        callbacks=[watching],
        progress=False,
        options=TINY,
    )
    assert (done.finished, done.step) == (False, 90)
    episodes = watching.seen.pop("episode")
    assert 2 <= episodes <= 10
    assert watching.seen == {"start": 1, "step": 90, "update": 7, "log": 4, "checkpoint": 2, "end": 1}
    with pytest.raises(ValueError, match="is a run in CartPole-v1, not in Pendulum-v1"):
        drama.train("Pendulum-v1", run=tmp_path / "run", resume=True, progress=False)
    again = drama.train("CartPole-v1", steps=120, run=tmp_path / "run", resume=True, progress=False)
    assert (again.finished, again.step) == (True, 120)


def test_a_callback_that_fails_ends_the_run_and_every_callback(tmp_path: Path) -> None:
    class Failing(drama.Callback):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.step == 5:
                raise KeyError("mine")

    watching = Watching()
    with pytest.raises(KeyError, match="mine"):
        drama.train(
            "CartPole-v1",
            steps=120,
            preset="debug",
            run=tmp_path / "run",
            callbacks=[watching, Failing()],
            progress=False,
            options=TINY,
        )
    assert watching.seen["KeyError"] == 1
    with pytest.raises(TypeError, match=r"callbacks: got .*expected instances of drama\.Callback"):
        drama.train("CartPole-v1", run=tmp_path / "x", callbacks=[print])  # type: ignore[list-item]


def test_runs_train_on_any_thread(tmp_path: Path) -> None:
    found: list[drama.Run] = []
    thread = threading.Thread(target=lambda: found.append(quickly("CartPole-v1", tmp_path / "run")))
    thread.start()
    thread.join()
    assert found[0].finished


def test_a_resumed_run_without_a_state_begins_new_episodes_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "run"
    quickly("CartPole-v1", path, steps=90)
    trainer = Trainer.resume(path, steps=120)
    assert len(trainer.notes) == 2
    assert "CartPole-v1 cannot give its state" in trainer.notes[0]
    rows = len(trainer.replay)
    assert trainer.train()
    batch = trainer.replay.gather([rows - 1], 2)
    assert batch["is_first"].tolist() == [[False, True]] or batch["is_first"][0, 1]
    assert not batch["terminated"][0, 0] or batch["is_first"][0, 1]


@pytest.mark.parametrize("failure", ["raises", "nan", "outside"])
def test_an_environment_that_fails_leaves_a_checkpoint_to_go_on_from(tmp_path: Path, failure: str) -> None:
    class Breaking(gymnasium.Env[Any, Any]):
        observation_space = spaces.Box(-1, 1, (2,), np.float32)
        action_space = spaces.Discrete(2)
        breaks = True
        steps = 0

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed, options=options)
            return np.zeros(2, np.float32), {}

        def step(self, action: Any) -> Any:
            self.steps += 1
            shown = np.full(2, 0.25 * float(action), np.float32)
            if self.steps == 80 and self.breaks:
                if failure == "raises":
                    raise OverflowError("too far")
                shown[:] = np.nan if failure == "nan" else 9
            return shown, 1.0, self.steps % 10 == 0, False, {}

    said = {"raises": "OverflowError: too far", "nan": "not a finite number", "outside": "outside of its space"}[
        failure
    ]
    path = tmp_path / "run"
    with pytest.raises(EnvFailed, match=rf"environment 0 failed after step 79: .*{said}.*resume=True.* from step 79"):
        quickly(Breaking, path, steps=120)
    Breaking.breaks = False
    again = drama.train(Breaking, steps=120, preset="debug", run=path, resume=True, progress=False)
    assert again.finished


def test_a_run_does_not_go_on_in_another_environment(tmp_path: Path) -> None:
    class Changing(gymnasium.Env[Any, Any]):
        size = 2
        action_space = spaces.Discrete(2)

        def __init__(self) -> None:
            self.observation_space = spaces.Box(-1, 1, (self.size,), np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed, options=options)
            return np.zeros(self.size, np.float32), {}

        def step(self, action: Any) -> Any:
            return np.zeros(self.size, np.float32), float(action), False, False, {}

    quickly(Changing, tmp_path / "run", steps=80)
    Changing.size = 3
    with pytest.raises(ValueError, match="the run learned with observation"):
        Trainer.resume(tmp_path / "run", steps=120)


def test_presets_follow_what_is_shown() -> None:
    assert choose_preset("Catch", EnvConfig(), "cpu")[0] == "small"
    assert choose_preset("CartPole-v1", EnvConfig(), "cpu")[0] == "vector"
    assert choose_preset("CartPole-v1", EnvConfig(render=True), "cpu")[0] == "cpu"
    assert choose_preset("Pong", EnvConfig(), "cpu")[0] == "cpu"
    config, why = make_config("pong", "auto", {"device": "cpu", "train.batch_size": 6})
    assert (config.game, config.preset, config.train.batch_size) == ("Pong", "cpu", 6)
    assert why is not None
    with pytest.raises(
        ValueError, match=r"'train\.batchsize' is no field of the config \(did you mean train\.batch_size"
    ):
        make_config("pong", "cpu", {"train.batchsize": 4})


def test_keys_push_continuous_actions() -> None:
    from drama.interface import Interface, Vector

    interface = Interface({"obs": Vector(("x",))}, Continuous(3))
    assert action_for({"LEFT", "UP"}, interface).tolist() == [-1, 1, 0]


def test_metrics_go_to_other_loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    uri = f"file://{tmp_path}/mlruns"
    drama.train(
        "CartPole-v1",
        steps=100,
        preset="debug",
        run=tmp_path / "run",
        callbacks=[drama.MLflow(uri)],
        progress=False,
        options=TINY,
    )
    client = mlflow.MlflowClient(uri)
    (found,) = client.search_runs(["0"])
    assert found.data.params["train.batch_size"] == "4"
    assert np.isfinite(found.data.metrics["train/world_model/loss"])


def test_metrics_go_to_wandb_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    drama.train(
        "CartPole-v1",
        steps=100,
        preset="debug",
        run=tmp_path / "run",
        callbacks=[drama.WandB(project="test", mode="offline")],
        progress=False,
        options=TINY,
    )
    assert list((tmp_path / "run").glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
def test_a_lost_terminal_leaves_a_checkpoint(tmp_path: Path, name: str) -> None:
    class Hanging(drama.Callback):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.step == 30:
                signal.raise_signal(getattr(signal, name))

    with pytest.raises(SystemExit) as stop:
        drama.train(
            "CartPole-v1",
            steps=100,
            preset="debug",
            run=tmp_path / "run",
            callbacks=[Hanging()],
            progress=False,
            options=TINY,
        )
    assert stop.value.code == 128 + getattr(signal, name)
    assert checkpoint.latest(tmp_path / "run").name == "step-000000030"


def test_checkpoints_come_by_the_clock(tmp_path: Path) -> None:
    saved: list[int] = []

    class Noting(drama.Callback):
        def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
            saved.append(int(path.name.removeprefix("step-")))
            trainer._saved = (trainer._saved[0], 0.0)  # as if it had taken no time

    drama.train(
        "CartPole-v1",
        steps=100,
        preset="debug",
        run=tmp_path / "run",
        callbacks=[Noting()],
        progress=False,
        options=TINY | {"log.checkpoint_minutes": 1e-9},
    )
    assert saved == list(range(1, 101))


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    """As in `drama train ... | head -1`."""
    command = [sys.executable, "-c", "from drama.cli import main; main()", "train", "CartPole-v1", "--preset", "debug"]
    options = ["--env.no-grayscale", "--steps", "120", "--run", str(tmp_path / "run"), "--device", "cpu"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(100) == 0
    assert checkpoint.latest(tmp_path / "run").name == "step-000000120"
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    """The second names the first and leaves everything to it; a killed one holds nobody up."""
    path = tmp_path / "run"
    quickly("CartPole-v1", path, steps=80)
    script = (
        "import sys, time, drama\n"
        "class Waiting(drama.Callback):\n"
        "    def on_step(self, trainer):\n"
        "        print('stepping', flush=True)\n"
        "        time.sleep(100)\n"
        f"options = dict(steps=120, run={str(path)!r}, resume=True, progress=False)\n"
        "drama.train('CartPole-v1', callbacks=[Waiting()], **options)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "stepping\n"
    with pytest.raises(ValueError, match=rf"process {process.pid} on .* is training in this folder"):
        drama.train("CartPole-v1", steps=120, run=path, resume=True, progress=False)
    process.kill()
    process.wait()
    process.stdout.close()
    assert drama.train("CartPole-v1", steps=120, run=path, resume=True, progress=False).finished


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "gpu"}, r"device: 'gpu' must be 'auto' or 'cpu' or 'cuda'"),
        ({"train.sampler": "foo"}, r"train\.sampler: 'foo' must be 'dfs' or 'uniform'"),
        ({"train.num_envs": "4"}, r"train\.num_envs: '4' must be of type int"),
        ({"seed": "a"}, r"seed: 'a' must be of type int"),
        ({"env.kwargs": "{}"}, r"env\.kwargs: '\{\}' must be of type dict"),
        ({"env.imports": "numpy"}, r"env\.imports: 'numpy' must be of type tuple"),
        ({"world_model.latent.classes": -1}, r"world_model\.latent\.classes: -1 is too small"),
        ({"world_model.vision.strides": (0, 2, 2)}, r"vision\.strides: \(0, 2, 2\) must hold a whole number of at"),
        ({"world_model.latent.local": True}, r"latent\.variables: \d+ must be a multiple of \d+, the cells of the"),
        ({"train.num_envs": 4}, r"train\.start_step: 64 rows .* needs 68; raise it"),
    ],
)
def test_options_of_another_kind_are_named(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        quickly("CartPole-v1", tmp_path / "run", **options)


def test_a_resume_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run"
    quickly(Mixed, path, steps=80)
    before = (path / "config.json").read_text()
    with pytest.raises(ValueError, match=r"steps: 50 is fewer than the warm-up"):
        Trainer.resume(path, steps=50)
    Path(path / "config.json").write_text(before.replace(":Mixed", ":Missing"))
    with pytest.raises(ValueError, match="has no 'Missing'"):
        Trainer.resume(path, steps=120)
    assert (path / "config.json").read_text() == before.replace(":Mixed", ":Missing")
    with pytest.raises(ValueError, match="options: a run that is resumed keeps its config"):
        drama.train(Mixed, run=path, resume=True, options={"seed": 1})
    for wrong, match in (
        ({"seed": 7}, "seed: .* is a run with 0, not with 7"),
        ({"preset": "vector"}, "preset: .* is a run with 'debug', not with 'vector'"),
        ({"resume": "ifthere"}, "resume: got 'ifthere', expected True, False or"),
    ):
        arguments: dict[str, Any] = {"resume": True, "run": path, **wrong}
        with pytest.raises(ValueError, match=match):
            drama.train(Mixed, **arguments)
    with pytest.raises(ValueError, match="run: to resume, name the folder"):
        drama.train(Mixed, resume=True)


def test_an_export_is_not_trained_on(run: drama.Run, tmp_path: Path) -> None:
    from drama.results.export import export_run

    out = export_run(run.path, tmp_path / "out")
    with pytest.raises(ValueError, match="an export has no optimizers"):
        Trainer.resume(out, steps=200)
    assert not (out / "checkpoints").exists()


def test_a_callback_with_a_misspelt_method_is_refused(tmp_path: Path) -> None:
    class Misspelt(drama.Callback):
        def on_episod(self) -> None: ...

    with pytest.raises(TypeError, match="Misspelt has on_episod, which nothing calls"):
        drama.train("CartPole-v1", run=tmp_path / "run", callbacks=[Misspelt()], preset="debug", options=TINY)
    with pytest.raises(TypeError, match="expected a list of them"):
        drama.train("CartPole-v1", run=tmp_path / "run", callbacks=Misspelt())  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_ctrl_c_ends_a_script_after_a_checkpoint(tmp_path: Path) -> None:
    class Pressing(drama.Callback):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.step == 20:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="stopped at step 20, with a checkpoint"):
        drama.train(
            "CartPole-v1", run=tmp_path / "run", callbacks=[Pressing()], preset="debug", progress=False, options=TINY
        )
    assert checkpoint.latest(tmp_path / "run").name == "step-000000020"


def test_an_own_environment_keeps_its_colours_and_a_script_is_told_of() -> None:
    assert not make_config("test_api:Mixed", "cpu", {})[0].env.grayscale
    assert make_config("pong", "cpu", {})[0].env.grayscale
    with pytest.raises(ValueError, match="Gone was defined in a script, and only that script knows it"):
        make_config("__main__:Gone", "auto", {})


def test_flags_of_another_number_of_environments_are_refused(run: drama.Run) -> None:
    agent = drama.load(run.path, device="cpu")
    env = Mixed() if "Mixed" in agent.config.game else gymnasium.make(agent.config.game)
    with pytest.raises(ValueError, match=r"first: got shape \(3,\) for the observations of 1"):
        agent.act(env.reset()[0], np.zeros(3, np.bool_))


def test_an_export_runs_no_code(tmp_path: Path) -> None:
    """Its config may name anything: to load it imports nothing, and to play it wants to be trusted."""
    from drama.results.export import export_run

    path = tmp_path / "run"
    quickly(Mixed, path, steps=80)
    out = export_run(path, tmp_path / "out")
    (tmp_path / "evil_world.py").write_text("raise SystemExit('imported')")
    config = (out / "config.json").read_text().replace("test_api:Mixed", "evil_world:make")
    (out / "config.json").write_text(config)
    sys.path.insert(0, str(tmp_path))
    try:
        agent = drama.load(out, device="cpu")
        parts = {name: np.zeros(part.shape, part.dtype) for name, part in agent.interface.observation.items()}
        assert agent.act(parts, True).shape == (2,)
        with pytest.raises(ValueError, match=r"observation: '\w+' is missing, got .*`agent.interface`.*env=\.\.\."):
            agent.act(Mixed().reset(seed=0)[0], True)  # as the environment gives it
        for use in (
            lambda: evaluate_run(out, episodes=1, device="cpu"),
            lambda: dream_run(out, steps=8, context=3, skip=2, seed=0, device="cpu"),
            lambda: list(watch(out, episodes=1, greedy=None, seed=0, device="cpu")),
        ):
            with pytest.raises(ValueError, match=r"import and run evil_world:make.*--trust"):
                use()
        with pytest.raises(SystemExit, match="imported"):
            evaluate_run(out, episodes=1, device="cpu", trust=True)
    finally:
        sys.path.remove(str(tmp_path))
    given = drama.load(out, device="cpu", env=Mixed)
    assert Mixed.action_space.contains(given.act(Mixed().reset(seed=0)[0], True))


def test_functions_of_one_name_stay_apart(tmp_path: Path) -> None:
    """Each run is evaluated in its own environment, and goes on in it."""
    import functools

    class Paying(gymnasium.Env[Any, Any]):
        observation_space = spaces.Box(-1, 1, (2,), np.float32)
        action_space = spaces.Discrete(2)

        def __init__(self, pay: float) -> None:
            self.pay = pay

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed, options=options)
            self.steps = 0
            return np.zeros(2, np.float32), {}

        def step(self, action: Any) -> Any:
            del action
            self.steps += 1
            return np.zeros(2, np.float32), self.pay, self.steps == 5, False, {}

    makers = [functools.partial(Paying, pay) for pay in (1.0, 100.0)]
    runs = [quickly(make, tmp_path / str(i), steps=70) for i, make in enumerate(makers)]
    assert [run.evaluate(1)["mean"] for run in runs] == [5.0, 500.0]
    again = drama.train(makers[1], run=tmp_path / "1", steps=80, resume=True, progress=False)
    assert again.evaluate(1)["mean"] == 500.0


def test_agents_neither_take_nor_change_random_numbers(run: drama.Run) -> None:
    import torch

    env = Mixed() if "Mixed" in run.load(device="cpu").config.game else None
    observation = (env or gymnasium.make(run.load(device="cpu").config.game)).reset(seed=0)[0]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one = run.load(device="cpu")
    alone = [np.asarray(one.act(observation, True)).tolist() for _ in range(8)]
    evaluate_run(run.path, episodes=1, seed=3, device="cpu")
    assert torch.equal(torch.rand(3), expected)
    one, other = run.load(device="cpu"), run.load(device="cpu", seed=5)
    beside = []
    for _ in range(8):
        beside.append(np.asarray(one.act(observation, True)).tolist())
        other.act(observation, True)
    assert beside == alone


def test_a_refused_resume_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    from drama.files import locked

    path = tmp_path / "run"
    quickly("CartPole-v1", path, steps=80)
    before = (path / "config.json").read_text()
    with locked(path), pytest.raises(ValueError, match="is training in this folder"):
        drama.train("CartPole-v1", run=path, steps=999, resume=True, progress=False)
    with locked(path), pytest.raises(ValueError, match="is training in this folder"):
        Trainer.resume(path)  # before it reads a checkpoint, which the other may remove
    with pytest.raises(ValueError, match=r"steps: .* has gone to step 80 already, which is more than 70"):
        Trainer.resume(path, steps=70)
    assert (path / "config.json").read_text() == before


def test_a_run_that_was_trained_on_since_it_was_read_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "run"
    quickly("CartPole-v1", path, steps=80)
    first, second = Trainer.resume(path, steps=120), Trainer.resume(path, steps=100)
    assert first.train()
    before = (path / "metrics.jsonl").read_text()
    with pytest.raises(
        ValueError, match="another process has trained it to step 120 since this one read it at step 80"
    ):
        second.train()
    assert (path / "metrics.jsonl").read_text() == before
    assert json.loads((path / "config.json").read_text())["steps"] == 120


def test_a_failure_at_a_checkpoint_can_be_gone_on_from(tmp_path: Path) -> None:
    class Breaking(gymnasium.Env[Any, Any]):
        observation_space = spaces.Box(0, np.inf, (1,), np.float32)
        action_space = spaces.Discrete(2)
        breaks = True
        count = 0

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed, options=options)
            self.count = 0
            return np.zeros(1, np.float32), {}

        def step(self, action: Any) -> Any:
            del action
            self.count += 1
            if self.count == 81 and self.breaks:
                raise OverflowError("too far")
            return np.array([self.count], np.float32), 0.0, False, False, {}

        def get_state(self) -> int:
            return self.count

        def set_state(self, state: int) -> None:
            self.count = state

    path = tmp_path / "run"
    with pytest.raises(EnvFailed):
        quickly(Breaking, path, steps=120, **{"log.checkpoint_every": 80})
    assert drama.train(Breaking, run=path, resume=True, progress=False).finished  # in a new episode of fewer steps


def test_numpy_numbers_are_numbers(tmp_path: Path) -> None:
    options = {"train.agent_lr": np.float32(1e-3), "seed": np.int64(3)}
    assert quickly("CartPole-v1", tmp_path / "run", steps=int(np.int64(70)), **options).finished


def test_a_sequence_no_longer_than_its_context_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.batch_length: 4 must be more than train\.context = 4"):
        make_config("CartPole-v1", "debug", {"train.batch_length": 4})


class Counted(Mixed):
    """Counts how often it is made in this process."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1


@pytest.mark.parametrize(("preset", "made"), [("debug", 1), ("auto", 2)])
def test_a_run_makes_its_environment_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str, made: int
) -> None:
    """Once more where its kind of observation is to choose the preset."""
    monkeypatch.chdir(tmp_path)

    class Begun(Exception):
        pass

    class Stop(drama.Callback):
        def on_start(self, _: Any) -> None:
            raise Begun

    Counted.made = 0
    with pytest.raises(Begun):
        drama.train(Counted, preset=preset, progress=False, callbacks=[Stop()], options=TINY)
    assert Counted.made == made
