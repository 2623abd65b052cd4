"""The screen as pictures: `pytest --snapshot-update` after a change that was meant."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from textual.pilot import Pilot

from engine import protocol as p
from engine.session import recipe_hash
from qtui.app import Look, QtuiApp
from tests.qtui import replay as r

LAYER = "model.layers.0.mlp.down_proj"
LAST_WORDS = "it was killed by signal 9\nINFO sweep\nMemoryError: 3.1 GB wanted"
Compare = Callable[..., bool]


def picture(
    compare: Compare, size: tuple[int, int], *, theme: str = "", dies: bool = False
) -> bool:
    """Whether a sweep that is two thirds done, with a recipe being measured, looks as before."""
    link = r.Replay([*r.opening(), *r.triaged(), *r.swept(24)])

    async def connect() -> r.Replay:
        return link

    app = QtuiApp("demo", r.SETTINGS, r.PROFILE, connect, look=Look(theme="qtui-dark"))

    async def until(pilot: Pilot[None], condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition() or app.pump.due:
                await pilot.pause()
                await asyncio.sleep(0.002)

    async def drive(pilot: Pilot[None]) -> None:
        if theme:
            app.theme = theme
        await until(pilot, lambda: len(link.sent) >= 3 and link.heard())
        link.give(r.changed(app.session, [LAYER], r.FORMAT))
        await until(pilot, lambda: app.session.position == 1)
        key = recipe_hash(app.session.recipe())
        link.give(p.RecipePartial(r.score(key, ppl=26.42, half=0.05, tokens=4096)))
        await until(pilot, lambda: p.AskHistogram(LAYER, format=r.FORMAT) in link.sent)
        link.give(r.drawn(LAYER))
        await until(pilot, lambda: app.session.histograms)
        await until(pilot, lambda: app.workbench.detail.histogram.plots)
        if dies:
            link.die(LAST_WORDS)
            await until(pilot, lambda: app.workbench.banner.has_class("-shown"))
        # Which of the quick jobs was seen running is a matter of time.
        app.workbench.message.say("info", "ready")
        await pilot.pause()

    return compare(app, terminal_size=size, run_before=drive)


@pytest.fixture(autouse=True)
def _colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_narrow(snap_compare: Compare) -> None:
    assert picture(snap_compare, (80, 24))


def test_wide(snap_compare: Compare) -> None:
    assert picture(snap_compare, (160, 50))


def test_light_without_an_engine(snap_compare: Compare) -> None:
    assert picture(snap_compare, (120, 40), theme="qtui-light", dies=True)
