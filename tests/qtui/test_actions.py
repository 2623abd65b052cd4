"""Every action of the registry, at every stage of a session's life."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from engine import protocol as p
from qtui.actions import ACTIONS, bindings, toggles
from qtui.screens.palette import Palette
from qtui.screens.workbench.actions import WorkbenchActions
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving

STAGES = ("nothing", "listed", "model", "swept", "dead")
LAST = ("suspend", "quit")
OTHER_ENDS = ("stop",)
"""Tried elsewhere: after quitting nothing else can be done."""
"""After these there is nothing more to see."""


@asynccontextmanager
async def at(stage: str) -> AsyncIterator[Driver]:
    """A session that has come so far."""
    events: dict[str, list[p.AnyEvent]] = {
        "nothing": [],
        "listed": list(r.opening())[:4],
        "model": [*r.opening(), *r.triaged()],
        "swept": [*r.opening(), *r.triaged(), *r.swept()],
        "dead": [*r.opening(), *r.triaged(), *r.swept(5)],
    }
    async with driving(*events[stage], size=(120, 40)) as d:
        if stage == "dead":
            d.link.die("the engine was killed by signal 9")
            await d.until(lambda: d.bench.banner.has_class("-shown"))
            await d.pilot.pause()
        yield d


async def closed(d: Driver) -> None:
    """Nothing lies over the workbench, and nothing is typed at its foot."""
    while d.app.screen is not d.bench or d.bench.handler.prompts.open:
        await d.pilot.press("escape")


def test_every_action_has_a_handler_and_a_title_and_no_key_is_given_twice() -> None:
    assert {action.id for action in ACTIONS} == set(WorkbenchActions.HANDLERS)
    actions = [*ACTIONS, *toggles(r.PROFILE.keys)]
    assert len({action.id for action in actions}) == len(actions)
    assert all(action.title for action in actions)
    keys = [binding.key for binding in bindings(actions)]
    assert sorted(set(keys)) == sorted(keys)
    # What the key bar shows is an action, and has a word to be shown with.
    named = [action for action in actions if action.word]
    assert len({action.rank for action in named}) == len({a.place for a in named}) == len(named)


@pytest.mark.parametrize("stage", STAGES)
async def test_every_action_is_done_or_says_why_not(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at(stage) as d:
        suspended: list[bool] = []
        monkeypatch.setattr(d.app, "action_suspend_process", lambda: suspended.append(True))
        greyed = set()
        ids = [action.id for action in d.bench.actions if action.id not in (*LAST, *OTHER_ENDS)]
        for id in [*ids, *LAST]:
            sent = len(d.link.sent)
            why = d.bench.handler.why_not(id)
            d.bench.handler.perform(id)
            await d.pilot.pause()
            if why:
                greyed.add(id)
                assert d.bench.message.said == ("warning", why), id
                asked = [c for c in d.link.sent[sent:] if not isinstance(c, p.QUESTIONS)]
                assert not asked, id
            if id != "quit":
                await closed(d)
                assert d.app.is_running, id
        assert suspended == [True]
        await d.until(lambda: d.app.return_code is not None)
    always = {"up", "down", "help", "palette", "theme", "quit", "suspend", "freeze", "log", "pane"}
    assert not greyed & always
    assert ("filter" in greyed) == (stage == "nothing")
    assert ("hold.int4-g128" in greyed) == (stage == "nothing")
    # Turned to restoring by the action before it, there is a sweep to go on with.
    assert ("retry" in greyed) == (stage == "nothing")
    assert "expand" in greyed


async def test_the_palette_greys_what_cannot_be_done_says_why_and_does_the_rest() -> None:
    async with at("model") as d:
        await d.pilot.press("colon")
        palette = d.app.screen
        assert isinstance(palette, Palette)
        for entry in palette.entries:
            assert entry.why_not == d.bench.handler.why_not(entry.id), entry.id
        listed = {entry.id for entry in palette.entries if not entry.asked}
        assert listed == {a.id for a in d.bench.actions}
        assert {"order:kl", "scope:block", "theme:terminal"} <= {e.id for e in palette.entries}
        await d.pilot.press(*"undo", "enter")
        await d.pilot.pause()
        assert "not now: nothing to undo" in d.screen()
        assert d.app.screen is palette
        assert not d.sent(p.Undo)
        await d.pilot.press("ctrl+u", *"hold int4", "enter")
        await d.until(lambda: d.sent(p.SetFormat))
        assert d.app.screen is d.bench
        current = d.table.current
        assert d.sent(p.SetFormat) == [p.SetFormat((current,), "int4-g128")]


async def test_the_palette_opens_prompts_and_screens() -> None:
    async with at("swept") as d:
        await d.pilot.press("ctrl+p", *"filter", "enter")
        await d.until(lambda: d.bench.handler.prompts.open)
        assert d.app.screen is d.bench
        await d.pilot.press(*"down", "enter")
        assert d.table.filter.text == "down"
        await d.pilot.press("colon", *"help", "enter")
        await d.until(lambda: type(d.app.screen).__name__ == "Help")


async def test_what_became_impossible_while_the_palette_was_open_says_why() -> None:
    async with at("model") as d:
        await d.give(
            p.JobStarted(
                job="9", kind="sweep", command=p.Sweep(("int8",)), title="sweep int8", total=37
            )
        )
        await d.pilot.press("colon", *"cancel sweep int8")
        await d.give(p.JobEnded(job="9", kind="sweep", status="done"))
        await d.pilot.press("enter")
        await d.until(lambda: d.app.screen is d.bench)
        assert "nothing is running" in d.bench.message.text
        assert not d.sent(p.Cancel)
