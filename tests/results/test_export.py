"""Exports: the card, what is refused, the hub's stand-in, and ONNX beside PyTorch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import drama
from drama.agent.player import Player
from drama.cli import main
from drama.config import Config, preset, with_options
from drama.envs import make_env
from drama.interface import Choices, Continuous, Image, Interface, Vector
from drama.models.latent import sample_from
from drama.results.evaluation import evaluate_run, load_learner
from drama.results.export import export_run
from drama.results.hub import local
from drama.training.learner import Learner
from drama.training.weights import save_weights
from helpers import frames

if TYPE_CHECKING:
    from drama.results.graphs import Step

WEIGHTS = "model.safetensors"
DEBUG = with_options(preset("debug"), {"device": "cpu", "train.precision": "float32"})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of an agent of Catch that has learned nothing, evaluated."""
    config = dataclasses.replace(DEBUG, game="Catch", steps=120)
    learner = Learner(config, frames(config, 1, 3), torch.device("cpu"))
    run = tmp_path_factory.mktemp("export") / "run"
    run.mkdir()
    (run / "config.json").write_text(config.to_json())
    (run / "interface.json").write_text(learner.world_model.interface.to_json())
    save_weights(run, learner, 120)
    evaluate_run(run, episodes=3, device="cpu")
    return export_run(run, run.parent / "catch", licence="CC-BY-4.0")


@pytest.fixture
def export(exported: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(exported, tmp_path / "catch"))


def said_by(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that fails says, which is one line."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_card_says_what_it_is_and_how_its_scores_were_measured(exported: Path) -> None:
    text = (exported / "README.md").read_text()
    (path,) = exported.glob("evaluation-*.json")
    scores = json.loads(path.read_text())
    assert "# Catch, 120 steps" in text
    assert f"| standard | sampled | 3 | {scores['mean']:.4g} |" in text
    assert "`drama eval FOLDER --episodes 3 --protocol standard --greedy False --seed 1000000`" in text
    assert 'license: "cc-by-4.0"' in text
    assert text.endswith("## Licence\n\nCC-BY-4.0\n")


def test_the_command_of_a_card_gives_what_the_card_says(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = (export / "README.md").read_text().partition("`drama eval FOLDER")[2].partition("`")[0]
    (path,) = export.glob("evaluation-*.json")
    before = json.loads(path.read_text())
    with pytest.raises(SystemExit) as stop:
        main(["eval", str(export), "--device", "cpu", *command.split()])
    assert not stop.value.code
    assert str(path) in capsys.readouterr().out
    assert json.loads(path.read_text()) == before


def without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object], metadata: dict[str, str] | None = None) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata or {"format": "1", "step": "120"})


def another_shape(folder: Path) -> None:
    rewritten(folder, lambda tensors: tensors.update({"world_model.prior.bias": np.zeros(3, np.float16)}))


def missing_weight(folder: Path) -> None:
    rewritten(folder, lambda tensors: tensors.pop("agent.actor.0.weight"))


def unknown_weight(folder: Path) -> None:
    rewritten(folder, lambda tensors: tensors.update({"agent.more": np.zeros(3, np.float16)}))


def newer_weights(folder: Path) -> None:
    rewritten(folder, len, {"format": "2", "step": "120"})


def newer_config(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["train"]["telepathy"] = 1
    (folder / "config.json").write_text(json.dumps(values))


def code_beside(folder: Path) -> None:
    (folder / "world.py").write_text("raise SystemExit")


def pickle_beside(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


def weights_beside(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_weights, "catch: holds neither a checkpoint nor the model.safetensors of an export"),
        (another_shape, "world_model.prior.bias is [3], and [16] with the config beside it"),
        (missing_weight, "agent.actor.0.weight is none, and ["),
        (unknown_weight, "agent.more is [3], and none with the config beside it"),
        (newer_weights, "format 2, this package reads format 1; a newer version of drama wrote it"),
        (newer_config, "config.json: train.telepathy"),
        (code_beside, "world.py: no part of an export"),
        (pickle_beside, "pytorch_model.bin: no part of an export"),
        (weights_beside, "model-00002-of-00002.safetensors: no part of an export"),
    ],
)
def test_an_export_that_is_none_costs_one_line(
    export: Path, change: Callable[[Path], None], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(export)
    assert said in said_by(capsys, "eval", str(export), "--episodes", "1", "--device", "cpu")


@pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"step": 120}', "\xff"])
def test_an_evaluation_that_is_none_is_named_before_anything_is_written(export: Path, text: str) -> None:
    (export / "evaluation-bad.json").write_bytes(text.encode("latin-1"))
    out = export.parent / "out"
    with pytest.raises(ValueError, match=r"evaluation-bad\.json: damaged, or no evaluation"):
        export_run(export, out)
    assert not out.exists()


def test_what_links_lead_to_is_neither_handed_out_nor_written_over(export: Path) -> None:
    secret = export.parent / "secret"
    secret.write_text("mine")
    (export / ".config.json.tmp").symlink_to(secret)
    export_run(export, export)
    assert secret.read_text() == "mine"
    (export / "metrics.jsonl").unlink(missing_ok=True)
    (export / "metrics.jsonl").symlink_to(secret)
    with pytest.raises(ValueError, match=r"metrics\.jsonl: damaged, or no metrics"):
        export_run(export, export.parent / "out")


def test_an_unknown_device_is_refused(export: Path) -> None:
    with pytest.raises(ValueError, match="device: 'cud' is unknown; expected auto, cpu or cuda"):
        load_learner(export, "cud")


def test_what_commands_write_into_an_export_leaves_it_one(export: Path) -> None:
    for name in ("dream.gif", "dream.mp4", "dream.png", "acting.onnx", "LICENSE", ".gitattributes"):
        (export / name).touch()
    agent = drama.load(export, device="cpu")
    assert agent.step == 120
    assert repr(agent) == "<Agent of Catch, preset debug, 120 steps, sampled, cpu>"


class Hub(BaseHTTPRequestHandler):
    """The addresses of the Hugging Face hub that a download asks for, over one folder as `someone/catch`."""

    folder: ClassVar[Path]
    commit = "c" * 40
    asked: ClassVar[list[str]]

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing, where the base class writes to the terminal."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0]).lstrip("/")
        self.asked.append(path)
        name, prefix = "someone/catch", "api/models/"
        if not path.removeprefix(prefix).startswith(f"{name}/") and path.removeprefix(prefix) != name:
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        rest = path.removeprefix(prefix).removeprefix(name).strip("/").split("/")
        if len(rest) > 1 and rest[1] not in ("main", "v1", self.commit):
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = sorted(file for file in self.folder.iterdir() if file.is_file())
        if rest[0] == "resolve":
            file = self.folder / rest[2]
            if not file.exists():
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            data = file.read_bytes()
            return self.answer(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": self.commit})
        if rest[0] == "tree":
            listed = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files]
            return self.answer(200, json.dumps(listed).encode(), {})
        facts = {"id": name, "sha": self.commit, "siblings": [{"rfilename": f.name} for f in files]}
        return self.answer(200, json.dumps(facts).encode(), {})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A stand-in of the hub on this machine, which the real client asks."""
    constants = pytest.importorskip("huggingface_hub.constants")

    class Standing(Hub):
        folder = export
        asked: ClassVar[list[str]] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Standing)
    address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield Standing
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_agent_of_the_hub_is_loaded_by_name(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (hub.folder / "world.py").write_text("raise SystemExit")  # what is no part of an export is not even downloaded
    agent = drama.load("hf://someone/catch", device="cpu")
    assert agent.step == 120
    assert agent.act(np.zeros(agent.interface.observation["obs"].shape, np.uint8), True) in range(3)
    assert not [path for path in hub.asked if path.endswith(".py")]
    folder = local(Path("hf://someone/catch@v1"))
    assert (folder / WEIGHTS).read_bytes() == (hub.folder / WEIGHTS).read_bytes()
    with pytest.raises(SystemExit) as stop:
        main(["eval", "hf://someone/catch", "--episodes", "1", "--device", "cpu"])
    assert not stop.value.code
    assert "Catch after 120 steps" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["dream", "hf://someone/catch", "--steps", "8", "--context", "3", "--skip", "2", "--device", "cpu"])
    assert not stop.value.code
    assert Path("dream.gif").exists()


def test_what_the_hub_does_not_have_costs_one_line(hub: type[Hub], capsys: pytest.CaptureFixture[str]) -> None:
    assert "hf://someone/cath: the hub knows no such model" in said_by(capsys, "eval", "hf://someone/cath")
    assert "hf://someone/catch@v7: the hub knows no such revision" in said_by(capsys, "play", "hf://someone/catch@v7")
    (hub.folder / WEIGHTS).unlink()
    assert "hf://someone/catch: holds no model.safetensors" in said_by(capsys, "dream", "hf://someone/catch")
    assert "hf:/catch: expected hf://owner/name" in said_by(capsys, "report", "hf://catch")


@pytest.mark.usefixtures("hub")
def test_without_a_network_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    local("hf://someone/catch")
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
        value = getattr(constants, name)
        monkeypatch.setattr(constants, name, value.replace(constants.ENDPOINT, "http://127.0.0.1:9"))
    assert (local("hf://someone/catch") / WEIGHTS).exists()  # what is there already is taken
    capsys.readouterr()
    assert "hf://someone/other: the hub cannot be reached" in said_by(capsys, "eval", "hf://someone/other")


@pytest.fixture
def quick() -> Iterator[None]:
    """Without what tracing logs, which would cost more than the tracing."""
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("quick")
def test_the_graph_of_acting_plays_as_the_player_does(export: Path, tmp_path: Path) -> None:
    """Over whole episodes, with the same random numbers: the same actions, so the same memory too."""
    pytest.importorskip("onnxruntime")
    from drama.results.graphs import ACTING, DREAMING, Acting, Dreaming, compare, open_graph

    said: list[str] = []
    out = export_run(export, tmp_path / "out", format="onnx", told=said.append)
    assert [line.partition(":")[0] for line in said] == [str(out / ACTING), str(out / DREAMING)]
    assert f"`{ACTING}`: largest difference from PyTorch " in (out / "README.md").read_text()
    assert drama.load(out, device="cpu").step == 120
    config, learner, _ = load_learner(out, "cpu")
    graph, player = open_graph(out / ACTING), Player(learner.world_model, learner.agent, 1)
    variables = config.world_model.latent.variables
    given = {name: value.numpy() for name, value in Acting(learner.world_model, learner.agent).inputs(1).items()}
    env = make_env(config.game, config.env)
    seen, chosen = 0, set()
    for seed in range(6):
        obs, _ = env.reset(seed=seed)
        first, over = True, False
        while not over:
            with torch.random.fork_rng():
                torch.manual_seed(seen)
                expected = player.act({"obs": obs[None]}, np.array([first]))
            torch.manual_seed(seen)  # the player draws for the latent, the action, and the latent to come
            given |= {"obs": obs[None], "first": np.array([first]), "noise": torch.rand(1, variables).numpy()}
            found = graph(given)
            policy = torch.from_numpy(found["probabilities"])
            action = sample_from(policy.log(), torch.rand(1)).argmax(-1).numpy()
            assert action == expected
            given |= {name: value for name, value in found.items() if name in given} | {"action": action}
            obs, _, terminated, truncated, _ = env.step(expected[0])
            first, over = False, terminated or truncated
            seen += 1
            chosen.add(int(action[0]))
    assert (seen, chosen) == (6 * 7, {0, 1, 2})
    step = Dreaming(learner.world_model)
    memory = {name: torch.from_numpy(given[name]) for name in step.inputs(1)}
    actions = ({"action": torch.tensor([t % 3]), "noise": step.noise(1)} for t in range(20))
    check = compare(out / DREAMING, step, actions, memory)
    assert (check.steps, check.flipped) == (20, 0)
    assert check.difference < 1e-4


def real_episode(config: Config, step: Step) -> Iterator[dict[str, torch.Tensor]]:
    """Inputs of an acting step from an episode of the game, with random actions."""
    env = make_env(config.game, config.env)
    random = np.random.default_rng(0)
    obs, _ = env.reset(seed=0)
    action, first, over = np.zeros(1, np.int64), True, False
    while not over:
        yield {
            "obs": torch.from_numpy(obs[None].copy()),
            "first": torch.tensor([first]),
            "action": torch.from_numpy(action),
            "noise": step.noise(1),
        }
        action, first = random.integers(6, size=1), False
        obs, _, terminated, truncated, _ = env.step(action[0])
        over = terminated or truncated


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("quick")
def test_the_graph_of_acting_is_pytorchs_over_an_episode_of_pong(tmp_path: Path) -> None:
    from drama.results.graphs import ACTING, Acting, compare, write_graphs

    learner = Learner(DEBUG, frames(DEBUG), torch.device("cpu"))
    write_graphs(tmp_path, learner)
    step = Acting(learner.world_model, learner.agent)
    check = compare(tmp_path / ACTING, step, real_episode(DEBUG, step))
    assert check.steps > 700
    assert check.difference < 1e-4
    assert check.flipped < 1e-3  # rounding decides a sample now and then


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("options", "interface"),
    [
        (
            {"world_model.sequence.backend": "transformer"},
            Interface({"obs": Image((32, 32, 3)), "obs_1": Vector(("x", "y"))}, Choices((2, 3), single=False)),
        ),
        (
            {"world_model.sequence.backend": "mamba", "agent.act_on": "prior"},
            Interface({"obs": Vector(("x", "y"))}, Continuous(2)),
        ),
        ({"world_model.reset_state": False, "agent.normalize": False}, Interface.of_frames((32, 32, 1), 6)),
        (
            {
                "world_model.latent.local": True,
                "world_model.latent.variables": 16,
                "world_model.latent.posterior_gain": 3.0,
                "world_model.reward_from": "next",
            },
            Interface.of_frames((32, 32, 1), 6),
        ),
    ],
)
def test_graphs_of_every_kind_are_pytorchs(options: dict[str, Any], interface: Interface, tmp_path: Path) -> None:
    from drama.results.graphs import write_graphs

    config = with_options(DEBUG, options)
    learner = Learner(config, interface, torch.device("cpu"))
    for check in write_graphs(tmp_path, learner):
        assert (check.difference < 1e-4, check.flipped < 1e-2) == (True, True), check
