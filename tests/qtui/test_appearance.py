"""How it looks, changed while it runs: the frozen display, the next theme, the folded pane."""

from __future__ import annotations

import pytest

from engine import protocol as p
from qtui.app import Appearance, QtuiApp
from qtui.user.remembered import recall
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving
from tests.qtui.screens.test_scopes_and_keys import NAMES

DOWN = "model.layers.0.mlp.down_proj"


def body(d: Driver) -> str:
    """The rows of the table, as they stand on the screen."""
    region = d.table.region
    return "\n".join(d.screen().splitlines()[region.y : region.bottom])


async def fold(d: Driver, *events: p.AnyEvent) -> None:
    """Let the engine say something that need not be drawn."""
    d.link.give(*events)
    await d.until(lambda: d.link.heard() and not d.app.pump.due)
    await d.pilot.pause()


async def test_a_frozen_display_stands_still_while_results_are_collected() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept(5)) as d:
        await d.pilot.press("z")
        await d.settled()
        rows = body(d)
        await fold(d, *r.swept())
        assert body(d) == rows
        known = sum(fact is not None for fact in d.app.session.effects.measured[r.EFFECTS])
        assert known == 37
        # A hand may go on moving over what stands still.
        await d.pilot.press("j")
        await d.pilot.pause()
        assert d.table.cursor == 1
        await d.pilot.press("z")
        await d.until(lambda: d.bench.session is d.app.session)
        await d.settled()
        assert body(d) != rows
        await d.pilot.press("g")
        await d.pilot.pause()
        assert " 8.38 " in d.screen()


async def test_a_toggle_lets_the_display_go_on() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept(5)) as d:
        await d.pilot.press("z")
        await fold(d, *r.swept())
        assert d.app.engine.frozen
        await d.pilot.press("4")
        await d.until(lambda: not d.app.engine.frozen)
        await d.until(lambda: d.bench.session is d.app.session)
        assert d.sent(p.SetFormat)


async def test_an_engine_that_is_lost_ends_the_pause() -> None:
    async with driving(*r.opening(), *r.swept(5)) as d:
        await d.pilot.press("z")
        await d.until(lambda: d.app.engine.frozen)
        d.link.die("the engine was killed by signal 9")
        await d.until(lambda: d.bench.banner.has_class("-shown"))
        assert not d.app.engine.frozen
        assert "The engine was killed by signal 9." in d.screen()


async def test_the_next_theme_is_drawn_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    async with driving(*r.opening(), *r.swept()) as d:
        names, before = d.app.shelf.names, d.app.theme
        await d.pilot.press("ctrl+t")
        await d.pilot.pause()
        after = d.app.theme
        assert after == names[(names.index(before) + 1) % len(names)]
        assert f"theme {after}" in d.bench.message.text
        assert recall()[0].themes == {"full": after}
        for _ in names:
            await d.pilot.press("T")
        await d.pilot.pause()
        assert d.app.theme == after
        assert recall()[0].themes == {"full": after}


@pytest.mark.parametrize("by_log", [True, False])
async def test_what_an_earlier_run_left_is_how_it_looks(by_log: bool) -> None:
    link = r.Replay()

    async def connect() -> r.Replay:
        return link

    left = recall()[0]
    left = type(left)(pane=False, log_counts=by_log)
    app = QtuiApp("demo", r.SETTINGS, r.PROFILE, connect, Appearance(False, "qtui-dark", left))
    async with app.run_test(size=(160, 50)) as pilot:
        d = Driver(app, pilot, link)
        await d.until(lambda: len(link.sent) >= 3)
        await d.give(*r.opening())
        assert not d.bench.detail.display
        assert d.bench.detail.histogram.by_log is by_log
        await pilot.press("tab")
        await pilot.pause()
        assert d.bench.detail.display


async def test_resizing_over_and_over_ends_whole() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept(), size=(80, 24)) as d:
        wanted = d.screen()
        for size in [(160, 50), (59, 24), (80, 17), (200, 60), (1, 1), (60, 18), (80, 24)]:
            await d.pilot.resize_terminal(*size)
        await d.settled()
        await d.until(lambda: d.screen() == wanted)


async def test_a_frozen_display_says_so_and_how_to_go_on() -> None:
    async with driving(*r.opening(), *r.swept(5), keymap={"freeze": "X"}) as d:
        await d.pilot.press("X")
        await d.settled()
        assert "display frozen, X resumes" in d.screen()
        await d.pilot.press("X")
        await d.settled()
        assert "frozen" not in d.screen()


async def test_a_toggle_while_frozen_is_seen_at_once() -> None:
    async with driving(*r.opening(), *r.swept(5)) as d:
        await d.pilot.press("z")
        await d.settled()
        await d.pilot.press("4")
        await d.until(lambda: d.bench.session is d.app.session)
        await d.settled()
        assert d.table.pending
        assert "○int4-g128" in d.screen()


async def test_freezing_logs_nothing_twice() -> None:
    async with driving(*r.opening(), *r.swept(5)) as d:
        await d.give(
            p.Fallback(layer=NAMES[1], format="q4_k", why="256 is odd"),
            p.Fallback(layer=NAMES[2], format="q4_k", why="it is too short"),
        )
        before = d.bench.events.entries
        for _ in range(2):
            await d.pilot.press("z")
            await d.settled()
        assert d.bench.events.entries == before


async def test_a_layer_that_is_looked_at_while_the_display_is_frozen_has_its_histogram() -> None:
    async with driving(*r.opening(), *r.triaged(), size=(160, 50)) as d:
        await d.pilot.press("z", "j")
        name = NAMES[d.table.rows[1]]
        await d.until(lambda: p.AskHistogram(name) in d.sent(p.AskHistogram))
        d.link.give(r.histogram(name))
        await d.until(lambda: d.bench.detail.histogram.plots)
        assert d.app.engine.frozen
