"""The main function of a worker process."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import traceback
from collections.abc import Callable
from typing import Any

import gymnasium

from drama._native import VectorBoard
from drama.envs.arguments import NotMade
from drama.envs.group import EnvError, EnvGroup, Payload, describe
from drama.envs.layout import Description

CLOSE = pickle.dumps(("close", ()))
"""The last order."""


def dump(value: Any) -> bytes:
    """Pickled; by value where it is of the script that was started, which this process cannot import."""
    try:
        return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception:
        import cloudpickle

        return cloudpickle.dumps(value)


def main(number: int, parent: int, fd: int, shares: list[int], crowded: bool) -> None:
    """Step the environments of worker `number` and take orders, until one is to close.

    Args:
        number: of the worker.
        parent: process number of the parent; this process ends soon after it.
        fd: of the parent's board, inherited.
        shares: number of environments of each worker.
        crowded: whether there are more processes than cores.
    """
    import cloudpickle

    # Ctrl-C reaches the whole terminal group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    VectorBoard.die_with_parent(parent)
    os.set_inheritable(fd, False)
    first = sum(shares[:number])

    def keep(index: int, payload: Payload) -> None:
        try:
            data = dump(describe(payload) if isinstance(payload, Exception) else payload)
            group.board.write_mail(index, data)
        except Exception:
            text = f"the info or observation cannot be sent to another process:\n{traceback.format_exc()}"
            group.board.write_mail(index, pickle.dumps(text))

    def action_objects(index: int) -> Any:
        return pickle.loads(group.board.read_mail(index))

    board = VectorBoard(shares, shared=True, crowded=crowded, fd=fd)
    group = EnvGroup(board, worker=number, first=first, keep=keep, action_objects=action_objects)

    def make(registered: list[bytes], env_fns: bytes) -> Description:
        for data in registered:
            with contextlib.suppress(Exception):  # what wants modules that are not here is missed by who asks for it
                spec = cloudpickle.loads(data)
                gymnasium.registry.setdefault(spec.id, spec)
        return group.make(cloudpickle.loads(env_fns))

    def answer(order: bytes) -> bytes:
        """The result of an order, or the error and what caused it."""
        try:
            method, arguments = pickle.loads(order)
            do: Callable[..., Any] = make if method == "make" else getattr(group, method)
            return dump((do(*arguments), None, None))
        except (EnvError, NotMade) as error:
            with contextlib.suppress(Exception):
                pickle.loads(data := dump((None, error, error.__cause__)))
                return data
            return dump((None, error, None))
        except Exception:
            return dump((None, EnvError(first, traceback.format_exc()), None))

    closed = False
    while not closed:
        group.serve()
        order = group.board.read_order(number)
        closed = order == CLOSE
        result = answer(order)  # which may change the board
        group.board.answer(number, result)
