"""Compiled imagination: the plain one's numbers, and the plain one itself where there is no compiler."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from functools import partial
from typing import Literal

import pytest
import torch
from test_imagination import make_agent, make_model, make_steps, observe
from test_learner import make_batch, with_backend

from drama.agent.imagination import Step, Trajectory, imagine, imagine_step
from drama.config import Config, preset
from drama.interface import LONE
from drama.runtime.compiling import Compiled, wants_compiling
from drama.training.learner import Learner
from helpers import frames

CPU = torch.device("cpu")


def compiling(choice: Literal["auto", "on", "off"], steps: int = 100_000) -> Config:
    config = preset("cpu")
    return dataclasses.replace(config, steps=steps, train=dataclasses.replace(config.train, compile=choice))


def test_auto_compiles_long_runs_on_a_cpu_with_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert wants_compiling(compiling("auto"), CPU)
    assert not wants_compiling(compiling("auto", steps=10_000), CPU)
    assert not wants_compiling(compiling("auto"), torch.device("cuda"))
    assert not wants_compiling(compiling("off"), CPU)
    assert wants_compiling(compiling("on", steps=10_000), CPU)
    monkeypatch.setattr(shutil, "which", lambda name: None)  # noqa: ARG005
    assert not wants_compiling(compiling("auto"), CPU)


def test_what_does_not_compile_warns_once_and_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no compiler here\nand a long tale")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    compiled = Compiled("sum", lambda c: c(lambda a, b: a + b))
    with pytest.warns(UserWarning, match=r"train\.compile: the sum does not compile \(no compiler here\)"):
        assert compiled(1, 2) == 3
    assert compiled(2, 2) == 4  # without another warning, which would be an error here


def test_the_learner_compiles_what_it_is_asked_to() -> None:
    config = preset("debug")
    learners = [
        Learner(
            dataclasses.replace(config, train=dataclasses.replace(config.train, compile=choice)), frames(config), CPU
        )
        for choice in ("on", "off")
    ]
    assert [isinstance(learner._imagine_step, Compiled) for learner in learners] == [True, False]


def test_what_runs_before_and_after_falls_back_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails later than the call, as a backward pass may, is not compiled any more either."""

    def doubled_then(function: Callable[[int], int], x: int) -> int:
        result = 2 * function(x)
        if function is not plain:
            raise RuntimeError("later")
        return result

    def plain(x: int) -> int:
        return x + 1

    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda x: function(x))
    compiled = Compiled("sum", lambda c: partial(doubled_then, c(plain)))
    with pytest.warns(UserWarning, match=r"the sum does not compile \(later\)"):
        assert compiled(3) == 8
    assert compiled(4) == 10


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["mamba2", "mamba", "transformer"])
def test_compiled_updates_are_the_plain_ones(backend: str) -> None:
    """Losses and gradients of both updates, from the same random numbers, to a thousandth of their sizes."""
    config = with_backend(backend)
    sequence = dataclasses.replace(config.world_model.sequence, dropout=0.0)  # its masks differ between kernels
    config = dataclasses.replace(config, world_model=dataclasses.replace(config.world_model, sequence=sequence))
    train = dataclasses.replace(config.train, compile="on", precision="float32", imagine_from="batch")
    train = dataclasses.replace(train, statistics_frames=8)
    found, expected = (
        Learner(dataclasses.replace(config, train=dataclasses.replace(train, compile=choice)), frames(config), CPU)
        for choice in ("on", "off")
    )
    found.load_state_dict(expected.state_dict())
    batch = make_batch(config, 8, 16)

    def updated(learner: Learner) -> list[object]:
        torch.manual_seed(4)
        scalars = learner.update_together(batch, {LONE: batch.obs[LONE][0, :8]})
        return [*scalars, [p.grad for p in (*learner.world_model.parameters(), *learner.agent.actor.parameters())]]

    torch.testing.assert_close(updated(found), updated(expected), atol=2e-3, rtol=2e-3)
    parts = [found._agent_descent, found._targets, found._imagine_step]
    if backend == "mamba":
        assert not isinstance(found._descent, Compiled)
    else:
        parts += [found._descent, found._recall]
    for part in parts:
        assert isinstance(part, Compiled)
        assert part._compiled is not None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["mamba2", "mamba", "transformer"])
def test_compiled_steps_imagine_what_plain_ones_do(backend: str) -> None:
    """The same random numbers, so the same trajectory, to what rounding becomes where a small vector is normalised."""
    model = make_model(backend=backend)
    agent = make_agent(model)
    start = observe(model, *make_steps(5, 6, {0: (2,)}))

    def seeded(step: Step) -> Trajectory:
        torch.manual_seed(9)
        return imagine(model, agent, start, 5, step)

    compiled = Compiled("imagined step", lambda c: c(imagine_step))
    found, expected = seeded(compiled), seeded(imagine_step)
    assert compiled._compiled is not None
    torch.testing.assert_close(tuple(found), tuple(expected), atol=5e-3, rtol=5e-3)
