"""Compiled imagination: the plain one's numbers, and the plain one itself where there is no compiler."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Literal

import pytest
import torch
from test_imagination import make_agent, make_model, make_steps, observe

from drama.agent.imagination import Step, Trajectory, imagine, imagine_step
from drama.config import Config, preset
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
    compiled = Compiled("sum", lambda a, b: a + b)
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["mamba2", "mamba", "transformer"])
def test_compiled_steps_imagine_what_plain_ones_do(backend: str) -> None:
    """The same random numbers, so the same trajectory, to 1e-4 of what float32 gives."""
    model = make_model(backend=backend)
    agent = make_agent(model)
    start = observe(model, *make_steps(5, 6, {0: (2,)}))

    def seeded(step: Step) -> Trajectory:
        torch.manual_seed(9)
        return imagine(model, agent, start, 5, step)

    compiled = Compiled("imagined step", imagine_step)
    found, expected = seeded(compiled), seeded(imagine_step)
    assert compiled._compiled is not None
    torch.testing.assert_close(tuple(found), tuple(expected), atol=1e-4, rtol=1e-4)
