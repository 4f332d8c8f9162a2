"""The learner's updates on the device: nothing in them waits for a value, and misfit checkpoints are explained."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
import sys
from functools import partial
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from test_imagination import record_tape
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from drama.agent.actor_critic import Replayed
from drama.agent.imagination import Trajectory, imagine
from drama.agent.player import FEW
from drama.config import Config, preset
from drama.interface import LONE
from drama.models.observation import Parts
from drama.models.world_model import Batch, Belief
from drama.runtime.recording import Recorded
from drama.training.learner import Learner, Schedule, difference, shifted
from helpers import frames

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class NoWaiting(TorchDispatchMode):
    """Refuses the operations that would make the host wait for the device: their results have host-known values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    WAITS = (
        "aten._local_scalar_dense",
        "aten.nonzero",
        "aten.masked_select",
        "aten.is_nonzero",
        "aten.equal",
        "aten.unique",
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name = str(func)
        masked = name.startswith("aten.index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for indices in args[1:2]
            if isinstance(indices, list | tuple)
            for index in indices
        )
        if masked or name.startswith(self.WAITS):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


class NoCopies(TorchDispatchMode):
    """Refuses copies between host and device, which wait as well."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        if "copy" in str(func) and len({x.device.type for x in (result, *args) if isinstance(x, torch.Tensor)}) > 1:
            raise AssertionError(f"{func} copies between host and device")
        return result


@pytest.fixture
def imagined_cuda(monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    """A mode in which tensors on CUDA have shapes and devices, no values: operations check both, and no GPU is needed.

    Networks are made on the CPU; `to` moves them by putting such tensors in the place of theirs.
    """
    mode = FakeTensorMode()
    move = nn.Module.to

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if args != (CUDA,):
            return move(module, *args, **kwargs)
        with mode:
            for part in module.modules():
                for name, p in part.named_parameters(recurse=False):
                    moved = torch.empty(p.shape, dtype=p.dtype, device=CUDA)
                    setattr(part, name, nn.Parameter(moved, requires_grad=p.requires_grad))
                for name, buffer in part.named_buffers(recurse=False):
                    setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA))
        return module

    monkeypatch.setattr(nn.Module, "to", to)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    return mode


def make_batch(config: Config, rows: int, length: int, device: torch.device = CPU) -> Batch:
    size = config.env.frame_size
    return Batch(
        obs={LONE: torch.randint(0, 256, (rows, length, *size, 1), dtype=torch.uint8, device=device)},
        action=torch.randint(0, 6, (rows, length), device=device),
        reward=torch.randn(rows, length, device=device),
        ended=torch.rand(rows, length, device=device) < 0.1,
        is_first=torch.rand(rows, length, device=device) < 0.1,
    )


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x[0] > 0),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.masked_fill_(x > 0, 0).masked_select(x > 0),
    ],
)
def test_waiting_is_noticed(wait: Any) -> None:
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        wait(torch.randn(4))


@pytest.mark.parametrize("backend", ["mamba2", "mamba", "transformer"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_updates_do_not_wait_for_the_device(backend: str, precision: Any) -> None:
    config = with_backend(backend)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=precision, shift=2))
    learner = Learner(config, frames(config), CPU)
    with NoWaiting():
        for _ in range(2):
            losses = learner.update_world_model(make_batch(config, 4, 16))
            losses |= learner.update_agent(make_batch(config, 16, 4))
    assert all(torch.isfinite(value) for value in losses.values())


@pytest.mark.parametrize(("backend", "graph"), [("mamba2", True), ("mamba", False), ("transformer", False)])
def test_updates_stay_on_a_cuda_device(
    backend: str, graph: bool, imagined_cuda: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the backward pass, whose engine wants a real one: every tensor on it, nothing copied to it or from it."""
    config = with_backend(backend)
    train = dataclasses.replace(config.train, precision="float32", shift=2, cuda_graph=graph)
    config = dataclasses.replace(config, train=train)
    imagined = Mock(side_effect=lambda *rollout: lambda start: imagine(rollout[0], rollout[1], start, rollout[2]))
    recorded = Mock(side_effect=lambda name, function, difference: function)  # noqa: ARG005
    monkeypatch.setattr("drama.training.learner.recorded_imagination", imagined)
    monkeypatch.setattr("drama.training.learner.Recorded", recorded)
    monkeypatch.setattr("drama.training.learner.imagine", None if graph else imagine)
    learner = Learner(config, frames(config), CUDA)
    assert (imagined.call_count, recorded.call_count) == ((1, 2) if graph else (0, 0))

    def backward(loss: torch.Tensor) -> None:
        assert loss.device.type == "cuda"
        for p in [*learner.world_model.parameters(), *learner.agent.parameters()]:
            p.grad = torch.zeros_like(p)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    with imagined_cuda:
        batch, context = make_batch(config, 4, 16, CUDA), make_batch(config, 16, 4, CUDA)
        with NoCopies():
            losses = learner.update_world_model(batch) | learner.update_agent(context)
        with pytest.raises(AssertionError, match="between host and device"), NoCopies():
            torch.zeros(2).to(CUDA)
    assert {value.device.type for value in losses.values()} == {"cuda"}


def test_ppo_waits_once_per_minibatch_to_stop_early() -> None:
    """The one exception: whether to go on depends on how far the policy has moved."""
    config = preset("debug")
    config = dataclasses.replace(config, agent=dataclasses.replace(config.agent, policy="ppo"))
    learner = Learner(config, frames(config), CPU)
    with pytest.raises(AssertionError, match=r"(_local_scalar_dense|is_nonzero).* waits"), NoWaiting():
        learner.update_agent(make_batch(config, 16, 4))


def test_a_checkpoint_of_another_backend_says_what_to_change() -> None:
    trained, other = (Learner(with_backend(name), frames(preset("debug")), CPU) for name in ("mamba2", "mamba"))
    with pytest.raises(ValueError, match=r"config\.json.*backend is 'mamba', width 32, layers 2") as caught:
        other.load_state_dict(trained.state_dict())
    assert "world_model.sequence.mixers.0.A_log is [4] in the checkpoint and [64, 8] here" in str(caught.value)
    assert "\n" not in str(caught.value)


def with_backend(backend: str) -> Config:
    config = preset("debug")
    sequence = dataclasses.replace(config.world_model.sequence, backend=backend)
    return dataclasses.replace(config, world_model=dataclasses.replace(config.world_model, sequence=sequence))


def test_sequences_are_shifted_as_a_whole_and_repeat_the_edge() -> None:
    torch.manual_seed(0)
    rows, columns = torch.arange(8)[:, None], torch.arange(8)
    frame = (10 * rows + columns).to(torch.uint8)[..., None]
    obs = torch.stack([frame, 100 + frame])[None].expand(400, -1, -1, -1, -1)
    moved = shifted(obs, 2)
    found = set()
    for first, second in moved:
        torch.testing.assert_close(second, first + 100)
        down, right = 4 - int(first[4, 4, 0]) // 10, 4 - int(first[4, 4, 0]) % 10
        found.add((down, right))
        expected = frame[(rows - down).clamp(0, 7), (columns - right).clamp(0, 7)]
        torch.testing.assert_close(first, expected)
    assert found == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}


@pytest.mark.parametrize("shift", [0, 3])
def test_the_world_model_learns_from_shifted_frames(shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = preset("debug")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, shift=shift))
    learner, batch = Learner(config, frames(config), CPU), make_batch(config, 4, 16)
    seen: list[Parts] = []
    evaluate = learner.world_model.evaluate

    def watched(batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        seen.append(batch.obs)
        return evaluate(batch)

    monkeypatch.setattr(learner, "_descent", partial(learner._differentiated, watched))
    learner.update_world_model(batch)
    assert torch.equal(seen[0][LONE], batch.obs[LONE]) == (shift == 0)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or sys.platform != "linux", reason="of glibc alone")
def test_freed_memory_is_kept_for_the_next_update() -> None:
    script = (
        "import os, torch\n"
        "from drama.runtime.device import keep_freed_memory\n"
        "if {kept}: keep_freed_memory()\n"
        "del_me = torch.ones(50_000_000)\n"
        "del del_me\n"
        "print(int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGESIZE'))\n"
    )
    resident = {
        kept: int(
            subprocess.run([sys.executable, "-c", script.format(kept=kept)], capture_output=True, check=True).stdout
        )
        for kept in (False, True)
    }
    assert resident[True] - resident[False] > 150e6


def test_few_environments_are_acted_in_at_float32_on_a_cpu() -> None:
    """The model's precision, that of its updates, is for many."""
    config = preset("debug")
    learners = []
    for precision in ("float32", "bfloat16"):
        changed = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=precision))
        learners.append(Learner(changed, frames(config), CPU))
    learners[1].load_state_dict(learners[0].state_dict())
    same = []
    for count in (1, FEW + 1):
        obs = {LONE: np.full((count, *config.env.frame_size, 1), 128, np.uint8)}
        outputs = []
        for learner in learners:
            torch.manual_seed(0)
            player = learner.player(count)
            player.act(obs, np.ones(count, bool))
            outputs.append(player.get_state()[1])
        same.append(torch.equal(*outputs))
    assert same == [True, False]


def test_recorded_updates_are_those_without_a_recording() -> None:
    """The losses and weights of several updates, with the operations of the first one repeated."""
    config = with_backend("mamba2")
    plain, recording = (Learner(config, frames(config), CPU) for _ in range(2))
    recording.load_state_dict(plain.state_dict())
    recorder = Mock(side_effect=record_tape)
    recording._descent = Recorded("world-model update", recording._descent, difference, recorder)
    batches = [make_batch(config, 4, 16) for _ in range(4)]
    recording.update_world_model(batches[0])  # records and compares, by which statistics and random numbers moved on
    recording.load_state_dict(plain.state_dict())
    for batch in batches[1:]:
        found, expected = (seeded(learner, batch) for learner in (recording, plain))
        torch.testing.assert_close(found, expected, atol=0, rtol=0)
    assert recorder.call_count == 1
    torch.testing.assert_close(recording.state_dict()["world_model"], plain.state_dict()["world_model"])
    assert set(found) == {*expected, "gradient_norm"}


def seeded(learner: Learner, batch: Batch) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return learner.update_world_model(batch)


def test_imagination_starts_inside_the_sequences_of_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Consecutive steps of one row with the latents of the loss, each place once, as many as asked for."""
    config = preset("debug")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, imagine_from="batch"))
    learner, batch = Learner(config, frames(config), CPU), make_batch(config, 4, 16)
    places = torch.arange(64).view(4, 16)  # in the actions, to see which steps were taken
    windows: list[torch.Tensor] = []

    recall = learner.world_model.recall

    def taken(z: torch.Tensor, action: torch.Tensor, is_first: torch.Tensor) -> Belief:
        windows.append(action)
        assert z.shape == (config.train.imagination_batch, config.train.context, learner.world_model.latents)
        assert torch.equal(is_first, batch.is_first.flatten()[action])
        return recall(z, action % 6, is_first)

    monkeypatch.setattr(learner, "_recall", taken)
    step = learner._step_world_model
    monkeypatch.setattr(learner, "_step_world_model", lambda _, frames: step(batch, frames))
    world_model, agent = learner.update_together(batch._replace(action=places))
    assert {"loss", "kl"} <= world_model.keys()
    assert {"loss", "return"} <= agent.keys()
    assert torch.equal(windows[0], windows[0][:, :1] + torch.arange(config.train.context))
    assert torch.equal(windows[0][:, 0] // 16, windows[0][:, -1] // 16)
    assert len(windows[0][:, 0].unique()) == config.train.imagination_batch


def test_the_critic_is_given_the_real_steps_as_the_agent_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the belief that recalling the same steps gives, from the first on that an imagination could start at."""
    config = preset("debug")
    train = dataclasses.replace(config.train, imagine_from="batch")
    config = dataclasses.replace(config, train=train, agent=dataclasses.replace(config.agent, replay_value_scale=0.3))
    config.validate()
    learner, batch = Learner(config, frames(config), CPU), make_batch(config, 4, 16)
    model, before = learner.world_model, train.context - 1
    torch.manual_seed(0)
    with torch.no_grad():
        z = model.sample(model.encode(batch.obs))
        d, _ = model(z, batch.action, batch.is_first)
    given: list[Replayed | None] = []
    targets = learner.agent.targets

    def watched(trajectory: Trajectory, replayed: Replayed | None) -> Any:
        given.append(replayed)
        return targets(trajectory, replayed)

    monkeypatch.setattr(learner, "_targets", watched)
    with NoWaiting():
        scalars = learner.update_agent_within(batch, z, d)
    (real,) = given
    assert real is not None
    assert torch.equal(real.reward, batch.reward[:, before:])
    assert torch.equal(real.is_first, batch.is_first[:, before:])
    assert "replay_return" in scalars
    for end in range(2, 17 - before):
        with torch.no_grad():
            part = slice(0, before + end)
            belief = model.recall(z[:, part], batch.action[:, part], batch.is_first[:, part])
        torch.testing.assert_close(real.features[:, end - 1], belief.features, atol=1e-5, rtol=1e-5)


def test_more_places_than_the_sequences_have_are_refused() -> None:
    config = preset("debug")
    train = dataclasses.replace(config.train, imagine_from="batch", batch_length=5, batch_size=7)
    with pytest.raises(ValueError, match="16 is more than the 14 places"):
        dataclasses.replace(config, train=train).validate()


def test_rates_rise_at_first_and_fall_at_the_end() -> None:
    factors = [Schedule(warmup=4, updates=100, cooldown=0.4)(update) for update in range(110)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[4:61] == [1.0] * 57
    assert factors[80] == pytest.approx(0.5)
    assert factors[100:] == [0.05] * 10  # and stay small in a run that goes on
    assert [Schedule(0, 100, 0.0)(update) for update in (0, 99, 200)] == [1.0] * 3


def test_the_agents_rates_fall_as_late_as_it_starts() -> None:
    """With the rate of the last update of a run, after as many as there are."""
    config = preset("debug")
    train = dataclasses.replace(config.train, cooldown=0.5, agent_start=90, warmup_updates=0)
    learner = Learner(dataclasses.replace(config, train=train), frames(config), CPU)
    rates: dict[str, list[float]] = {}
    for name, updates in (("world_model", 14), ("agent", 7)):
        optimizer = learner._optimizers[name]
        rates[name] = []
        for parameter in optimizer._parameters:
            parameter.grad = torch.zeros_like(parameter)
        for _ in range(updates):
            rates[name].append(float(optimizer._schedule.get_last_lr()[0]))
            optimizer.step()
        assert rates[name][0] == getattr(train, f"{name}_lr")
        assert rates[name][-1] == pytest.approx(rates[name][0] / (updates / 2))
