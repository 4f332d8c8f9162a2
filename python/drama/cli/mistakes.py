"""What is wrong with a command line, in a line: the option, what came, what was expected, the nearest name."""

from __future__ import annotations

import dataclasses
import itertools
import re
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from drama.config import did_you_mean

KINDS = {int: "a whole number", float: "a number", str: "a word", Path: "a path", dict: "a JSON object"}
SEVERAL = {int: "whole numbers", float: "numbers", str: "words", Path: "paths"}


def mistake(cls: Any, args: Sequence[str], said: str) -> str:
    """The mistake in `args`, which are to make a `cls`; `said` is how the parser has put it."""
    hints = options(cls)
    flags = [re.sub(r"([^.]+)$", r"no-\1", name) for name, hint in hints.items() if hint is bool]
    known = [f"--{name}" for name in (*hints, *flags)]
    for word in args:
        name, equals, value = word.partition("=")
        spelt = re.sub(r"_(?=.)", "-", name)
        if re.match(r"-+[a-zA-Z]", word) and spelt not in known:
            return f"{name}: there is no such option{did_you_mean(spelt, known[: len(hints)])}"
        if equals and spelt in known and (spelt[2:] in flags or hints[spelt[2:]] is bool):
            return f"{name}: takes no value, got {value!r}"
    text = " ".join(re.sub(r"[│╭╮╰╯─]|-{4,}", " ", line) for line in said.splitlines()[1:])
    text = " ".join(text.split()).split(" For full helptext")[0].split(" Argument helptext")[0]
    if found := re.search(r"Missing value for argument '(--[^']+)'", text):
        return f"{found[1]}: a value is missing, expected {expected(hints.get(found[1][2:], str))}"
    for pattern in (r"invalid choice .* for argument '(--[^']+)'", r"Error parsing (--[^\s:]+):"):
        if (found := re.search(pattern, text)) and found[1][2:] in hints:
            hint, given = hints[found[1][2:]], _given(args, found[1])
            if dict in _kinds(hint):
                return f"{found[1]}: {text.partition(': ')[2]}"
            near = did_you_mean(given, [str(choice) for choice in _choices(hint)])
            return f"{found[1]}: got {given!r}, expected {expected(hint)}{near}"
    if found := re.search(r"Missing from drama .*?: (.*?) \(required\)", text):
        positional = next((field.name for field in dataclasses.fields(cls) if _is_positional(field)), "")
        return re.sub(r"^(--\S+)? ?[A-Z]+ ", lambda m: f"{m[1] or positional.upper()} is missing, expected: ", found[1])
    if found := re.search(r"Unrecognized options: (.*)", text):
        word = found[1].split(", ")[0].split(" ")[0]
        before = args[args.index(word) - 1] if word in args[1:] else ""
        if before.startswith("--") and hints.get(before[2:]) is bool:
            return f"{before}: takes no value, got {word!r}"
        return f"{word!r}: one word too many, it belongs to no option"
    return text


def options(cls: Any, prefix: str = "") -> dict[str, Any]:
    """The type of each option of a dataclass, by its name on the command line."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        option = prefix + re.sub(r"_(?=.)", "-", name)  # as in agent.lambda_
        found |= options(hint, f"{option}.") if dataclasses.is_dataclass(hint) else {option: hint}
    return found


def expected(hint: Any) -> str:
    """What an option of this type takes, in words."""
    choices = [str(choice) for choice in _choices(hint)]
    if choices:
        return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))
    return " or ".join(dict.fromkeys(_kind(kind) for kind in _members(hint)))


def _kind(hint: Any) -> str:
    inner = [kind for kind in get_args(hint) if kind is not Ellipsis]
    if get_origin(hint) is not tuple:
        return KINDS.get(get_origin(hint) or hint, "a word")
    several = SEVERAL.get(inner[0], "words")
    return several if Ellipsis in get_args(hint) else f"{len(inner)} {several}"


def _members(hint: Any) -> list[Any]:
    """The types of a union, without None; else the type itself."""
    if get_origin(hint) in (Union, types.UnionType):
        return [member for member in get_args(hint) if member is not type(None)]
    return [hint]


def _kinds(hint: Any) -> list[Any]:
    return [get_origin(member) or member for member in _members(hint)]


def _choices(hint: Any) -> list[Any]:
    found: list[Any] = []
    for member in _members(hint):
        found += get_args(member) if get_origin(member) is Literal else [True, False] if member is bool else []
    return found


def _is_positional(field: dataclasses.Field[Any]) -> bool:
    return "Positional" in str(field.type)


def _given(args: Sequence[str], option: str) -> str:
    """The words that follow the option, the last time that it is there."""
    given = ""
    for at, word in enumerate(args):
        name, equals, value = word.partition("=")
        if re.sub(r"_(?=.)", "-", name) == option:
            following = itertools.takewhile(lambda next_: not re.match(r"--[a-zA-Z]", next_), args[at + 1 :])
            given = value if equals else " ".join(following)
    return given
