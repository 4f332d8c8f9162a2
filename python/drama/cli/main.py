"""The command `drama`: picks the command, and turns every mistake into one line and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from drama import __version__
from drama.config import PRESETS, did_you_mean
from drama.hints import at_shell, install

COMMANDS = {
    "train": "train an agent in an Atari game or any Gymnasium environment, or go on with a run",
    "sweep": "train many agents on Ray: games by seeds by values of options, on one machine or a cluster",
    "eval": "play episodes with a trained agent and score them",
    "dream": "write a video of what the world model sees and imagines",
    "report": "write a page of curves, scores and dreams of runs, beside published scores",
    "play": "show or record the agent, or play inside its world model",
    "export": "write a trained agent into a small folder",
    "info": "show parameter counts, memory and versions",
    "games": "list the games",
}
EXTRAS = {
    "gymnasium": "atari",
    "ale_py": "atari",
    "matplotlib": "report",
    "rliable": "report",
    "pygame": "play",
    "ray": "sweep",
    "optuna": "sweep",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "huggingface_hub": "hub",
    "httpx": "hub",
}  # what brings a missing module; `train` brings all others


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 when done, 2 on bad input, 130 when interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    # Threads without work must sleep: in the loop in which they wait by default they take the cores of whatever runs
    # beside, and two runs on one machine stand almost still. OpenMP reads this when torch is loaded.
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "passive"
    if os.getcwd() not in sys.path:  # for package.module:function beside the runs
        sys.path.append(os.getcwd())
    try:
        try:
            with at_shell():
                code = _run(args)
        except SystemExit as stop:  # the parser has shown its help
            code = stop.code
        sys.stdout.flush()  # else a reader that has gone, or a full disk, shows only as Python ends
        sys.exit(code)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in ("", "drama"):
            raise
        _fail(f"{module} is not installed; `{install(EXTRAS.get(module, 'train'))}` brings it")
    except BrokenPipeError:  # whoever read the output has gone: that is no mistake
        _drop_output()
        sys.exit(0)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (ValueError, FloatingPointError) as error:
        _fail(" ".join(str(error).split()))
    except RuntimeError as error:
        if type(error).__name__ not in ("EnvError", "EnvFailed"):  # their module is heavy, and may not be installed
            raise
        failed: Any = error
        inner = failed if hasattr(failed, "text") else failed.__cause__
        if "drama.envs.adapt.NotInSpace: " not in inner.text:  # what that says needs no traceback
            print(inner.text.rstrip(), file=sys.stderr)
        _fail(f"environment {inner.env_id} failed: {inner.reason}" if inner is failed else str(error))
    except KeyboardInterrupt:
        print("drama: interrupted", file=sys.stderr)
        sys.exit(130)


def _run(args: Sequence[str]) -> int | str | None:
    """Run one command; gives the exit code."""
    name, *rest = args or ["--help"]
    if name == "help":  # `drama help train` is `drama train --help`
        if len(rest) > 1:
            raise ValueError(f"drama help takes one command, got {' '.join(rest)}")
        name, *rest = [*rest, "--help"]
    if name in ("-h", "--help", "-V", "--version", "version") and rest:
        raise ValueError(f"drama {name} takes no arguments, got {' '.join(rest)}")
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name in ("-V", "--version", "version"):
        print(__version__)
        return 0
    if name not in COMMANDS:
        raise ValueError(f"unknown command {name!r}{did_you_mean(name, COMMANDS)}; there are {', '.join(COMMANDS)}")
    if name == "sweep":  # needs an extra of its own
        from drama.cli.sweep import sweep

        return sweep(rest)
    from drama.cli import arguments

    parsed = getattr(arguments, name)(rest)
    if parsed is None:  # it was but asked for words
        return 0
    from drama.cli import commands

    code: int = getattr(commands, name)(parsed)
    return code


def _drop_output() -> None:
    """Throw away what cannot be written: Python would try it once more as it ends, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _help() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: drama COMMAND ...",
            "",
            f"World-model reinforcement learning with Mamba-2 and a Rust replay buffer, version {__version__}.",
            "",
            "commands:",
            *(f"  {name:{width}}  {text}" for name, text in COMMANDS.items()),
            "",
            "`drama COMMAND --help` shows the options of a command. To begin: drama train Pong",
            f"Presets: {', '.join(PRESETS)}.",
        ]
    )


def _fail(message: str) -> NoReturn:
    _drop_output()
    print(f"drama: error: {message}", file=sys.stderr)
    sys.exit(2)
