"""A thousand events a second for a minute: memory, frames, and what is known at the end.

The interface without a terminal, over a link that gives results and progress by turns; the same
results come again and again with other figures, so that what is known does not grow by itself.
"""

from __future__ import annotations

import asyncio
import itertools
import time

import psutil

from engine import protocol as p
from qtui.app import QtuiApp
from tests.bench import pretend
from tests.qtui import replay as r

LAYERS, RATE, SECONDS, EARLY = 2000, 1000, 60.0, 10.0


async def test_a_thousand_events_a_second() -> None:
    layers = pretend.layer_names(LAYERS)
    link = r.Replay()

    async def connect() -> r.Replay:
        return link

    app = QtuiApp("demo", r.SETTINGS, r.PROFILE, connect)
    process = psutil.Process()
    latest: dict[str, p.AnyFact] = {}
    given, slowest, memory = 0, 0.0, {}
    async with app.run_test(size=(120, 40)):
        link.give(*r.opening(layers), *pretend.triaged(layers))
        while not link.heard():
            await asyncio.sleep(0.01)
        events = pretend.sweep(layers)
        painted, began = app.pump.painted, time.perf_counter()
        while (now := time.perf_counter() - began) < SECONDS:
            for event in itertools.islice(events, max(0, int(now * RATE) - given)):
                given += 1
                link.give(event)
                if isinstance(event, p.Learned):
                    latest.update((fact.layer, fact) for fact in event.facts)  # type: ignore[union-attr]
            if now >= EARLY:
                memory.setdefault("early", process.memory_info().rss)
            await asyncio.sleep(0.005)
            slowest = max(slowest, time.perf_counter() - began - now)
        memory["late"] = process.memory_info().rss
        frames = app.pump.painted - painted
        while not link.heard():
            await asyncio.sleep(0.01)
        column = app.session.effects.measured[r.EFFECTS]
    missed = sum(column[app.session.index[layer]] != fact for layer, fact in latest.items())
    fps = r.PROFILE.fps
    print()
    print(f"{given} events in {SECONDS:.0f} s, {len(latest)} layers with results")
    print(f"results that are not the last one given: {missed}   aim: 0")
    print(f"frames: {frames}   aim: at most {fps * SECONDS + 1:.0f} ({fps} a second)")
    print(f"longest time the loop was held: {1000 * slowest:.0f} ms")
    first, grown = memory["early"] / 1e6, (memory["late"] - memory["early"]) / 1e6
    print(f"resident memory: {first:.1f} MB after {EARLY:.0f} s, {grown:+.1f} MB later")
