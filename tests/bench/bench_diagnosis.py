"""Keys of the diagnosis with 20,000 layers of a mixture of experts: map, gallery, findings.

In the real app without a terminal: from a key until it is handled and what changed is painted.
Run alone: ``python -m pytest tests/bench/bench_diagnosis.py -s``.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest

from engine import protocol as p
from qtui.app import GC_THRESHOLDS
from qtui.screens.diagnosis.screen import Diagnosis
from tests.bench.pretend import layer_names, triaged
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving

LAYERS = 20_000
FORMATS = {"int3-g128": 4.0, "int4-g128": 1.0, "int5-g128": 0.25, "int6-g128": 0.06, "int8": 0.004}
AIM = 60.0
"""Milliseconds, 95th percentile."""
KEYS = {
    "map": ["down", "right", "up", "left", "c"],
    "gallery": ["down", "right", "left", "down", "c"],
    "findings": ["down", "down", "up", "down", "down"],
}


def estimated(layers: list[str]) -> list[p.AnyEvent]:
    """Effects of all layers in some formats."""
    chance = random.Random(1)
    found: list[p.AnyEvent] = []
    for at in range(0, len(layers), 500):
        facts = []
        for name in layers[at : at + 500]:
            kl = 1e-6 * chance.lognormvariate(0, 0.5)
            facts += [
                p.Estimate(
                    layer=name, format=format, kl=kl * times, kl_se=kl * times / 10,
                    dnll=kl * times, dnll_se=kl * times / 10, tokens=100,
                )
                for format, times in FORMATS.items()
            ]  # fmt: skip
        found.append(p.Learned(("",) * len(facts), tuple(facts)))
    return found


def tell(where: str, took: list[float]) -> None:
    """Print quantiles beside the aim."""
    took.sort()
    p50, p95 = statistics.median(took), took[int(0.95 * len(took))]
    print(
        f"{where:9} {len(took)} keys   p50 {p50:5.1f} ms   p95 {p95:5.1f} ms   "
        f"max {took[-1]:5.1f} ms   aim: p95 under {AIM:.0f} ms"
    )


async def until_painted(d: Driver, key: str) -> float:
    """Seconds from a key in the app's queue until it is handled and nothing is left to paint.

    A pilot's own `press` waits 40 ms longer, whatever the key does.
    """
    app, shown = d.app, list[float]()
    paint = app._display

    def painted(*given: Any) -> None:
        paint(*given)
        shown.append(time.perf_counter())

    app._display = painted  # type: ignore[method-assign]
    begun = time.perf_counter()
    try:
        d.at_once(key)
        idle = 0
        while idle < 20:  # turns of the loop in which nothing was waiting
            await asyncio.sleep(0.001)
            pumps = (app, app.screen, *app.screen.walk_children())
            waiting = app.pump.due or app.screen._dirty_widgets
            waiting = waiting or any(pump.message_queue_size for pump in pumps)
            idle = 0 if waiting else idle + 1
    finally:
        del app._display
    return shown[-1] - begun if shown else 0.0


@pytest.fixture
def collected_as_in_the_interface() -> Iterator[None]:
    """Collect garbage as often as the interface does."""
    before = gc.get_threshold()
    gc.set_threshold(*GC_THRESHOLDS)
    yield
    gc.set_threshold(*before)


@pytest.mark.usefixtures("collected_as_in_the_interface")
async def test_keys_of_the_diagnosis() -> None:
    layers = layer_names(LAYERS)
    async with driving(*r.opening(layers), size=(120, 40)) as d:
        await d.give(*triaged(layers), *estimated(layers))
        await d.pilot.press("D")
        await d.settled()
        screen = d.app.screens.shown
        assert isinstance(screen, Diagnosis)
        await d.until(lambda: bool(screen.found) and screen.verdict.found is not None)
        print()
        for where, keys in KEYS.items():
            if where == "gallery":
                await d.pilot.press("g")
            if where == "findings":
                await d.pilot.press("g", "tab")
            took = []
            for turn in range(60):
                took.append(1000 * await until_painted(d, keys[turn % len(keys)]))
            took = [each for each in took if each]  # at either end a key changes nothing
            tell(where, took)
