"""What only a CUDA device can show: the same numbers as on the CPU, no waiting for it, runs that resume there."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import pytest
import torch
from test_learner import CPU, CUDA, make_batch, with_backend
from test_training import metrics, train

from drama.config import Config, preset
from drama.interface import LONE
from drama.models.sequence import build
from drama.models.world_model import Batch
from drama.results.dream import dream_run
from drama.results.evaluation import evaluate_run
from drama.training import checkpoint
from drama.training.learner import Learner
from drama.training.trainer import Trainer
from helpers import frames

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(300),  # the first use of a library takes long
]
BACKENDS = ["mamba2", "mamba", "transformer"]


@pytest.fixture(autouse=True)
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 that is float32: convolutions use TensorFloat-32 otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def moved(batch: Batch) -> Batch:
    obs = {name: x.to(CUDA) for name, x in batch.obs.items()}
    return Batch(obs, *(t.to(CUDA) for t in (batch.action, batch.reward, batch.ended, batch.is_first)))


def in_float32(config: Config) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, precision="float32"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_model_is_that_of_the_cpu(backend: str) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(with_backend(backend).world_model.sequence, kernels="portable")
    model = build(config).eval()  # no dropout
    x = torch.randn(3, 70, config.width)
    is_first = torch.rand(3, 70) < 0.05
    grad = torch.randn(3, 70, config.width)

    def run(device: torch.device) -> list[torch.Tensor]:
        model.to(device)
        given = x.detach().to(device).requires_grad_()
        y, state = model(given, is_first.to(device))
        step, _ = model.step(given[:, 0].detach(), is_first[:, 0].to(device), state)
        found = torch.autograd.grad((y * grad.to(device)).sum(), [given, *model.parameters()])
        return [t.detach().cpu() for t in (y, step, *found)]

    for left, right in zip(run(CUDA), run(CPU), strict=True):
        assert (left - right).norm() <= 1e-4 * right.norm()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("strides", [(2, 2, 2), (1, 2, 2)])
def test_losses_and_gradients_are_those_of_the_cpu(backend: str, strides: tuple[int, ...]) -> None:
    """Of everything in the world model that draws no random numbers: the latent is given."""
    config = in_float32(with_backend(backend))
    vision = dataclasses.replace(config.world_model.vision, strides=strides)
    config = dataclasses.replace(config, world_model=dataclasses.replace(config.world_model, vision=vision))
    torch.manual_seed(0)
    batch = make_batch(config, 4, 16)
    here, there = Learner(config, frames(config), CPU), Learner(config, frames(config), CUDA)
    there.load_state_dict(here.state_dict())

    def run(learner: Learner, batch: Batch) -> list[torch.Tensor]:
        model = learner.world_model
        z = model.encode(batch.obs).exp().flatten(2)
        d, _ = model(z, batch.action, batch.is_first)
        reward, termination = model.predict_outcome(d, z)
        outputs = [model.decode(z)[LONE], model.predict_latent(d), reward, termination]
        loss = sum((output.float().square().mean() for output in outputs), torch.zeros((), device=learner.device))
        return [t.detach().cpu() for t in (loss, *torch.autograd.grad(loss, list(model.parameters())))]

    for left, right in zip(run(there, moved(batch)), run(here, batch), strict=True):
        assert (left - right).norm() <= 2e-3 * right.norm() + 1e-7


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("graph", [True, False])
def test_updates_wait_for_nothing(backend: str, graph: bool) -> None:
    """Torch itself refuses whatever would wait, once the graph is recorded and the kernels are chosen."""
    config = with_backend(backend)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, shift=2, cuda_graph=graph))
    torch.manual_seed(0)
    learner = Learner(config, frames(config), CUDA)
    batch, context = make_batch(config, 4, 16, CUDA), make_batch(config, 16, 4, CUDA)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a graph that is not used, kernels that do not agree
        for _ in range(2):
            learner.update_world_model(batch)
            learner.update_agent(context)
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
        try:
            losses = learner.update_world_model(batch) | learner.update_agent(context)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(value) for value in losses.values())


def test_a_run_trains_resumes_plays_and_dreams(tmp_path: Path) -> None:
    config = dataclasses.replace(preset("debug"), device="cuda")
    run = tmp_path / "run"
    first = train(config, run)
    checkpoint.list_checkpoints(run)[-1].rename(tmp_path / "gone")
    resumed = Trainer.resume(run)
    assert resumed.step == 60
    assert resumed.train()
    again = metrics(run)
    losses = [[line["world_model/loss"] for line in lines if "world_model/loss" in line] for lines in (first, again)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    there = evaluate_run(run, episodes=1)
    assert there["device"] == "cuda"
    assert len(there["episodes"]) == 1
    assert evaluate_run(run, episodes=1, seed=7, device="cpu")["device"] == "cpu"  # what a GPU wrote, a CPU plays
    assert dream_run(run, steps=12, context=4, skip=2, seed=0).shape[0] == 12
