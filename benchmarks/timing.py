"""Compares ways to do the same thing: in turns, in one process, by the median of the ratio."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

Part = Callable[[], object]
Parts = dict[str, Part]

SHORTEST = 2e-3
"""Seconds: what takes less is called several times for one measurement."""
PAUSE = 5e-3
"""Seconds before each measurement: threads of the part before may wait in a loop for more work. A call that does not
count follows, as the pause leaves the processor cold."""


@dataclass
class Row:
    """One line of the table."""

    section: str
    case: str
    name: str
    seconds: float
    """Median over the turns."""
    ratio: float | None
    """Median over the turns of our time over this one's; below 1 where ours is faster. None for ours."""


def compare(section: str, case: str, parts: Parts, budget: float) -> list[Row]:
    """Time `parts`, of which the first is ours, for about `budget` seconds, at least three turns."""
    repeats = {}
    for name, part in parts.items():
        part()
        repeats[name] = max(1, int(SHORTEST / max(elapsed(part, 1), 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in parts}
    order = list(parts)
    random = Random(0)
    end = time.perf_counter() + budget
    while len(times[order[0]]) < 3 or time.perf_counter() < end:
        for name in order:
            time.sleep(PAUSE)
            parts[name]()
            times[name].append(elapsed(parts[name], repeats[name]))
        random.shuffle(order)
    return rows(section, case, times)


def rows(section: str, case: str, times: dict[str, list[float]]) -> list[Row]:
    """Lines from times by turn, of which the first are ours."""
    ours, *_ = times.values()
    table = []
    for name, others in times.items():
        ratio = statistics.median(own / other for own, other in zip(ours, others, strict=True))
        table.append(Row(section, case, name, statistics.median(others), None if others is ours else ratio))
    return table


def elapsed(part: Part, repeats: int) -> float:
    """Seconds per call."""
    begin = time.perf_counter()
    for _ in range(repeats):
        part()
    return (time.perf_counter() - begin) / repeats


def show(table: list[Row]) -> None:
    """Print the table."""
    previous = ("", "")
    for row in table:
        if (row.section, row.case) != previous:
            print(f"\n{row.section}: {row.case}")
            previous = (row.section, row.case)
        ratio = "" if row.ratio is None else f"ours / this {row.ratio:8.3g}"
        print(f"  {row.name:44} {duration(row.seconds)}   {ratio}")


def duration(seconds: float) -> str:
    """Seconds in the unit that suits."""
    for unit, factor in (("s ", 1), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:8.2f} {unit}"
    return f"{seconds * 1e6:8.2f} µs"
