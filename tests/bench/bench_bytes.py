"""Bytes written to the terminal: while a sweep runs, once it has ended, and for the help.

``qtui demo`` in a real pseudo-terminal of 120 × 40, at 4 and at 8 repaints a second; the help in
smaller ones too, over a sweep that pretends.
"""

from __future__ import annotations

import time

import pytest

from tests import terminal as t
from tests.bench.bench_paint import beside, pretended, socket_there
from tests.terminal import Terminal

WATCHED = 15.0
STILL = 10.0
"""Seconds in which nothing at all should be written."""
LINGERS = 9.0
"""Seconds after which the last message has given way to what stands there at rest."""


def written(terminal: Terminal, seconds: float) -> int:
    """Bytes written in so many seconds."""
    mark, until = len(terminal.chunks), time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        terminal.read(left)
    return sum(len(chunk.data) for chunk in terminal.chunks[mark:])


@pytest.mark.parametrize("fps", [4, 8])
def test_bytes_of_a_sweep(fps: int) -> None:
    formats = ("int3-g128", "int4-g128", "int5-g128", "int6-g128")
    profile = {"tokens": 2048, "seq_len": 256, "fps": fps, "sweep_formats": formats}
    with t.home(**profile) as home, t.qtui(home, "demo") as terminal:
        terminal.until(lambda s: (t.progress(s) or (0, 0))[0] > 1, what="a sweep that goes on")
        before, began = t.progress(terminal.screen), time.perf_counter()
        rate = written(terminal, WATCHED) / (time.perf_counter() - began) / 1000
        after = t.progress(terminal.screen)
        terminal.until(
            lambda s: t.progress(s) is None and any("ready" in line for line in s[:4]), 180,
            what="the end of the sweep",
        )  # fmt: skip
        ending = written(terminal, LINGERS)
        still = written(terminal, STILL)
        print()
        print(f"{fps} fps: sweep from {before} to {after} in {WATCHED:.0f} s")
        print(f"{fps} fps: {rate:.1f} KB/s during the sweep   aim: under 30 KB/s at 4 fps")
        print(f"{fps} fps: {ending} bytes in the {LINGERS:.0f} s after it, the last message's end")
        print(f"{fps} fps: {still} bytes in the next {STILL:.0f} s   aim: 0")


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_bytes_of_the_help(size: tuple[int, int]) -> None:
    with t.home() as home, beside(home, *pretended(home, 37, 1)):
        t.wait_for(lambda: socket_there(home), "the pretended engine")
        with t.qtui(home, "demo", size=size) as terminal:
            terminal.until(lambda s: (t.progress(s) or (0, 0))[0] > 3, what="a sweep")
            terminal.read(1.0)
            print()
            name = f"{size[0]} x {size[1]}"
            print(f"{name}, one result a second: {written(terminal, 5.0) / 5:.0f} bytes/s")
            for what in ("help", "help closed"):
                terminal.press("?")
                print(f"{name}, {what}: {written(terminal, 1.0)} bytes in the second after the key")
