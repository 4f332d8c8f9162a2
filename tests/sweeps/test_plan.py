"""What a sweep is to do: axes to runs, names, resources, and everything that is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drama.config import Config, preset
from drama.results.scores import published_scores
from drama.sweeps.plan import ATARI100K, Plan, check_resources, check_runs, check_same, config_of, make_plan


def debug(**changes: Any) -> Plan:
    return make_plan(**{"games": ["Catch", "Recall"], "seeds": 2, "preset": "debug", **changes})


def test_all_games_are_those_with_published_scores_in_a_fixed_order() -> None:
    assert set(ATARI100K) == published_scores().keys()
    assert list(ATARI100K) == sorted(ATARI100K)
    plan = make_plan("all", 2)
    assert plan.games == ATARI100K
    envs = [trial["env"] for trial in plan.trials()]
    assert envs == [*ATARI100K, *ATARI100K]  # every game once before any twice
    assert [trial["seed"] for trial in plan.trials()] == [0] * 26 + [1] * 26


def test_runs_are_games_by_seeds_by_the_grid() -> None:
    plan = debug(grid={"train.agent_lr": [1e-4, 3e-4], "env.size": [32, 64]}, options={"steps": 300})
    trials = plan.trials()
    assert len(trials) == 2 * 2 * 4
    assert trials[1] == {
        "run": "catch-debug-seed0-train.agent_lr=0.0001-env.size=64",
        "env": "Catch",
        "preset": "debug",
        "seed": 0,
        "threads": 1,
        "device": "cpu",
        "steps": 300,
        "train.agent_lr": 1e-4,
        "env.size": 64,
    }
    assert len({trial["run"] for trial in trials}) == len(trials)


def test_the_config_of_a_run_is_that_of_drama_train() -> None:
    config = config_of(debug(options={"steps": 300}, cpus=2).trials()[1])
    assert (config.game, config.seed, config.steps, config.threads, config.device) == ("Recall", 0, 300, 2, "cpu")
    assert config.train == preset("debug").train


def test_gpus_decide_the_device_and_options_win() -> None:
    assert config_of(debug(gpus=0.25).trials()[0]).device == "cuda"
    assert config_of(debug(gpus=0.25, options={"device": "cpu"}).trials()[0]).device == "cpu"
    assert config_of(debug(cpus=4, options={"threads": 2}).trials()[0]).threads == 2


def test_seeds_may_be_named() -> None:
    assert [trial["seed"] for trial in debug(games="Catch", seeds=[7, 3]).trials()] == [7, 3]


def test_a_search_is_one_run_of_which_optuna_chooses_the_rest() -> None:
    search = {"train.agent_lr": (1e-5, 1e-3, "log"), "train.batch_size": (2, 4)}
    plan = debug(games="Catch", seeds=1, search=search, samples=3)
    (trial,) = plan.trials()
    assert not search.keys() & trial.keys()
    assert json.loads(plan.to_json())["runs"] == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"games": []}, "games: name at least one"),
        ({"games": ["Pog"]}, "'Pog' is unknown .did you mean Pong"),
        ({"games": ["Catch", "catch"]}, "games, seeds, grid: two runs would be catch-debug-seed0"),
        ({"seeds": 0}, "seeds: got .., expected how many"),
        ({"seeds": [0, -1]}, "seeds: got .0, -1."),
        ({"seeds": [1, 1]}, "two runs would be catch-debug-seed1"),
        ({"preset": "debugg"}, "preset: 'debugg' is unknown .did you mean debug"),
        ({"options": {"train.batchsize": 3}}, "'train.batchsize' is no field of the config .did you mean"),
        ({"options": {"seed": 3}}, "options: seed is given as seeds"),
        ({"options": {"steps": 10}}, "steps: 10 is fewer than the warm-up"),
        ({"grid": {"game": ["Pong"]}}, "grid: game is given as games"),
        ({"grid": {"train.agent_lr": []}}, "grid: train.agent_lr needs a list"),
        ({"grid": {"train.sampler": "dfs"}}, "grid: train.sampler needs a list of at least one value, got 'dfs'"),
        ({"grid": {"train.agent_lr": [1e-4, 1e-4]}}, "grid: train.agent_lr has the same value twice"),
        ({"grid": {"train.agent_lr": ["high"]}}, "train.agent_lr: 'high' must be of type float"),
        ({"grid": {"train.context": [4, 1]}}, "train.context: 1 must be at least 2"),
        ({"grid": {"steps": [200]}, "options": {"steps": 300}}, "steps: given twice"),
        ({"search": {"train.agent_lr": (1e-4, 1e-3)}, "samples": 2}, "search: Optuna chooses for one game and one"),
        ({"games": "Catch", "seeds": 1, "search": {"train.agent_lr": (1e-4, 1e-3)}}, "samples: got 0"),
        ({"games": "Catch", "seeds": 1, "search": {"train.agent_lr": (1e-3, 1e-4)}, "samples": 2}, "a lowest and a"),
        ({"games": "Catch", "seeds": 1, "search": {"train.agent_lr": (0, 1e-4, "log")}, "samples": 2}, "logarithm"),
        ({"games": "Catch", "seeds": 1, "search": {"train.context": (1, 4)}, "samples": 2}, "train.context: 1 must"),
        ({"samples": 2}, "samples: 2 belong to a search"),
        ({"cpus": 0}, "cpus: 0 must be a number above 0"),
        ({"cpus": 1.5}, "cpus: 1.5 must be a whole number where it is above 1"),
        ({"gpus": -1}, "gpus: -1 must be a number of at least 0"),
        ({"options": {"device": "cuda"}}, "device: cuda needs a share of a GPU, such as gpus=0.25"),
        ({"grid": {"device": ["cpu", "cuda"]}}, "device: cuda needs a share of a GPU"),
        (
            {"games": ["CartPole-v1"], "grid": {"env.kwargs": [{"a": "b" * 300}]}},
            "grid: a run would be named cartpole-v1",
        ),
    ],
)
def test_what_cannot_be_run_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        debug(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"options": {"world_model.sequence.backend": "lstm"}}, "world_model.sequence.backend: 'lstm' is unknown"),
        ({"grid": {"world_model.sequence.head_dim": [16, 33]}}, "headdim: 33 does not divide"),
        ({"games": ["Catch", "Blackjack-v1"], "options": {"env.without": ("x",)}}, "env.without"),
    ],
)
def test_what_cannot_be_made_is_named(changes: dict[str, Any], said: str) -> None:
    check_runs(debug())
    with pytest.raises(ValueError, match=said):
        check_runs(debug(**changes))


@pytest.mark.parametrize(
    ("cpus", "gpus", "said"),
    [
        (8, 0, "cpus: a run asks for 8, and the most that a node of the cluster has is 4 .2 nodes."),
        (1, 2, "gpus: a run asks for 2, and the most that a node of the cluster has is 1 .2 nodes."),
        (4, 1, "cpus, gpus: no node has 4 processors and 1 GPUs together"),
    ],
)
def test_more_resources_than_a_node_has(cpus: float, gpus: float, said: str) -> None:
    nodes = [{"CPU": 4.0, "memory": 1.0}, {"CPU": 2.0, "GPU": 1.0}]
    check_resources(debug(cpus=2, gpus=0.25), nodes)
    with pytest.raises(ValueError, match=said):
        check_resources(debug(cpus=cpus, gpus=gpus), nodes)


def test_a_folder_of_the_same_sweep_is_taken_and_another_named(tmp_path: Path) -> None:
    plan = debug(grid={"train.agent_lr": (1e-4, 3e-4)})
    assert not check_same(tmp_path, plan.to_json(), debug(grid={"train.agent_lr": [1e-4, 3e-4]}))
    with pytest.raises(ValueError, match=r"another sweep \(seeds was \[0, 1\], is now \[1, 2\]"):
        check_same(tmp_path, plan.to_json(), debug(seeds=[1, 2], grid={"train.agent_lr": [1e-4, 3e-4]}))
    with pytest.raises(ValueError, match="grid was"):
        check_same(tmp_path, plan.to_json(), debug())
    for damaged in ("", "[]", '{"seeds": 2}', plan.to_json()[:-10]):
        with pytest.raises(ValueError, match="damaged, or of no sweep"):
            check_same(tmp_path, damaged, plan)
    with pytest.raises(ValueError, match="version 99, this package reads version 1"):
        check_same(tmp_path, '{"version": 99}', plan)


@pytest.mark.parametrize(
    ("before", "now", "beyond"),
    [
        ({}, {"seeds": 3}, True),
        ({}, {"seeds": 1}, False),
        ({"games": ["Catch"]}, {"games": ["Pong", "Catch"]}, True),
        ({"games": ["Pong", "Catch"]}, {"games": ["Catch"]}, False),
        ({}, {"options": {"steps": 300}}, True),
        ({"options": {"steps": 300}}, {"options": {"steps": 400}}, True),
        ({"options": {"steps": 300}}, {}, False),
        ({}, {"options": {"steps": 300, "train.batch_size": 3}}, False),
        ({"grid": {"train.agent_lr": [1e-4]}}, {"grid": {"train.agent_lr": [3e-4, 1e-4]}, "seeds": 3}, True),
        ({"grid": {"train.agent_lr": [1e-4]}}, {"grid": {"train.agent_lr": [3e-4]}}, False),
        ({}, {"grid": {"train.agent_lr": [1e-4]}}, False),
        ({}, {"preset": "cpu"}, False),
        ({}, {"cpus": 2}, False),
    ],
)
def test_a_sweep_may_become_more(before: dict[str, Any], now: dict[str, Any], beyond: bool, tmp_path: Path) -> None:
    text, plan = debug(**before).to_json(), debug(**now)
    if beyond:
        assert check_same(tmp_path, text, plan)
        return
    with pytest.raises(ValueError, match=r"another sweep .* in which only games, seeds, .* may become more"):
        check_same(tmp_path, text, plan)


def test_a_search_is_not_extended(tmp_path: Path) -> None:
    search = {"train.agent_lr": (1e-5, 1e-3)}
    text = debug(games="Catch", seeds=1, search=search, samples=3).to_json()
    with pytest.raises(ValueError, match="samples was 3, is now 4"):
        check_same(tmp_path, text, debug(games="Catch", seeds=1, search=search, samples=4))


def test_a_config_of_a_script_of_ones_own() -> None:
    config = config_of({"env": "Catch", "preset": "debug", "seed": 3, "train.agent_lr": 1e-4})
    assert config == config_of({"env": "Catch", "preset": "debug", "seed": 3, "train.agent_lr": 1e-4, "run": "x"})
    assert isinstance(config, Config)
    with pytest.raises(ValueError, match="did you mean"):
        config_of({"env": "Catch", "preset": "debug", "train.agent_lrr": 1e-4})
