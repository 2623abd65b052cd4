"""From a key to the bytes that show it, while a sweep runs at full speed.

The real interface in a real pseudo-terminal of 120 × 40. ``demo`` beside its own engine, which
takes every core it is given; and 50,000 and 200,000 layers over an engine that pretends, beside a
process that computes without end. Keys come at irregular intervals; that they were shown is looked
for afterwards, in the bytes as they came.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pyte
import pytest

from engine.store.paths import session_name
from tests import terminal as t
from tests.terminal import KITTY, Chunk, Home, Terminal

KEYS = 250
LONG = {
    "tokens": 16384, "seq_len": 256,
    "sweep_formats": tuple(f"int{bits}-g128" for bits in range(2, 8)),
}  # fmt: skip
"""A sweep that outlasts the keys."""
SHOWN = "●○*o"
"""Before a format that was set by hand."""


class Press(NamedTuple):
    """A key, and what shows that it was heard."""

    at: float
    key: str
    seen: Callable[[str, str], bool]
    """Of the line under the cursor before the key, and now."""


def holds(format: str) -> Callable[[str, str], bool]:
    """Whether the layer under the cursor is shown with a format."""
    return lambda before, now: bool(re.search(rf"[{SHOWN}]{format}\b", now))


def elsewhere(before: str, now: str) -> bool:
    """Whether the cursor stands on another layer."""
    return bool(now) and now[3:20] != before[3:20]


def press_keys(terminal: Terminal) -> list[Press]:
    """Press keys at irregular intervals, reading what comes as soon as it comes."""
    chance = random.Random(11)
    presses: list[Press] = []
    place, step = 0, 1
    while len(presses) < KEYS:
        turn = len(presses) % 6
        if turn < 4:
            step = -1 if place >= 15 else 1 if place <= 0 else step
            place += step
            key, data, seen = ("down", t.DOWN, elsewhere) if step > 0 else ("up", t.UP, elsewhere)
        else:
            key = "4" if turn == 4 else "8"
            data, seen = key.encode(), holds("int4-g128" if turn == 4 else "int8")
        presses.append(Press(time.perf_counter(), "toggle" if turn >= 4 else "move", seen))
        terminal.press(data)
        until = time.perf_counter() + chance.uniform(0.07, 0.3)
        while (left := until - time.perf_counter()) > 0:
            terminal.read(left)
    return presses


def latencies(
    screen: pyte.Screen, chunks: list[Chunk], presses: list[Press]
) -> dict[str, list[float]]:
    """Milliseconds from each key to the end of the read that showed it; infinite where none did."""
    stream = pyte.ByteStream(screen)
    found: dict[str, list[float]] = {"move": [], "toggle": []}
    ends = [press.at for press in presses[1:]] + [float("inf")]
    at = 0
    for press, end in zip(presses, ends, strict=True):
        while at < len(chunks) and chunks[at].at < press.at:
            stream.feed(KITTY.sub(b"", chunks[at].data))
            at += 1
        before = t.cursor_line(list(screen.display))
        took = float("inf")
        while at < len(chunks) and chunks[at].at < end:
            stream.feed(KITTY.sub(b"", chunks[at].data))
            at += 1
            if press.seen(before, t.cursor_line(list(screen.display))):
                took = 1000 * (chunks[at - 1].at - press.at)
                break
        found[press.key].append(took)
    return found


def measure(terminal: Terminal) -> dict[str, list[float]]:
    """Press keys and find out how long each took to be seen."""
    terminal.press(t.HOME)
    terminal.until(t.cursor_line)
    terminal.read(0.5)
    screen, mark = terminal.picture, len(terminal.chunks)
    terminal.blind = True
    presses = press_keys(terminal)
    terminal.read(1.0)
    return latencies(screen, terminal.chunks[mark:], presses)


def tell(what: str, found: dict[str, list[float]], aim: float) -> None:
    """Print quantiles beside the aim."""
    for name, each in (*found.items(), ("all", [*found["move"], *found["toggle"]])):
        ordered = sorted(each)
        p50, p95 = (ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.95))
        lost = sum(took == float("inf") for took in each)
        print(
            f"{what:28} {name:7} {len(each):4} keys   p50 {p50:6.1f} ms   p95 {p95:6.1f} ms"
            f"   max {ordered[-1]:7.1f} ms   not shown {lost}   aim: p95 under {aim:.0f} ms"
        )


@contextmanager
def beside(home: Home, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process, in the same home, that steps back as an engine does."""
    process = subprocess.Popen(["nice", "-n", "10", *command], env=home.environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def pretended(home: Home, layers: int, rate: float) -> tuple[str, ...]:
    """The command of an engine that pretends, in this home."""
    options = ("--layers", str(layers), "--rate", str(rate))
    return (sys.executable, "-m", "tests.bench.pretend", *options)


def socket_there(home: Home) -> bool:
    """Whether an engine listens in this home."""
    return any(home.folder.glob(f"qtui/*/{session_name('demo')}.sock"))


def test_key_to_paint_on_the_demo() -> None:
    with t.home(**LONG) as home, t.qtui(home, "demo") as terminal:
        terminal.until(lambda s: (t.progress(s) or (0, 0))[0] > 1, what="a sweep that goes on")
        found = measure(terminal)
        print()
        tell("demo, 37 layers", found, 50)


@pytest.mark.parametrize("layers", [50_000, 200_000])
def test_key_to_paint_with_many_layers(layers: int) -> None:
    busy = (sys.executable, "-c", "while True: pass")
    with t.home() as home, beside(home, *pretended(home, layers, 200)), beside(home, *busy):
        t.wait_for(lambda: socket_there(home), "the pretended engine")
        with t.qtui(home, "demo") as terminal:
            terminal.until(lambda s: (t.progress(s) or (0, 0))[0] > 100, what="a sweep")
            terminal.read(3.0)
            found = measure(terminal)
            print()
            tell(f"{layers:,} layers, 200 events/s", found, 30)
