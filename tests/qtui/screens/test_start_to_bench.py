"""From the start screen to the workbench, and out again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from engine import protocol as p
from engine.opening.inspection import Inspection
from engine.profiles import Profile
from qtui.app import Appearance, QtuiApp, StartScreen
from qtui.screens.start.screen import Start
from tests.qtui import replay as r
from tests.qtui import starting
from tests.qtui.driving import Driver, press_at_once

LONG = msgspec.structs.replace(r.SETTINGS, tokens=131072, profile="thorough")


def resolve(name: str) -> tuple[p.Settings, Profile]:
    return (LONG if name == "thorough" else r.SETTINGS), r.PROFILE


class Opening(starting.Hand):
    """An app that begins with its start screen."""

    app: QtuiApp
    start: Start
    link: r.Replay

    async def bench(self) -> Driver:
        """The workbench, once it has asked for everything."""
        await self.until(lambda: self.app.engine_link is not None and len(self.link.sent) >= 3)
        return Driver(self.app, self.pilot, self.link)


@asynccontextmanager
async def opening(problem: str = "") -> AsyncIterator[Opening]:
    link = r.Replay()

    async def connect() -> r.Replay:
        return link

    async def inspect(source: str) -> Inspection:
        return starting.looked(source, problem=problem if source != "demo" else "")

    start = Start(
        lambda: [starting.session("llama")], inspect, starting.PROFILES, "standard",
        clock=lambda: starting.NOW,
    )  # fmt: skip
    app = QtuiApp(
        None, r.SETTINGS, r.PROFILE, connect, Appearance(theme="qtui-dark"),
        StartScreen(lambda glyphs: start, resolve),
    )  # fmt: skip
    async with app.run_test(size=(100, 30)) as pilot:
        hand = Opening(app, pilot)
        hand.start, hand.link = start, link
        await hand.until(lambda: "1 session" in start.head.text)
        yield hand


async def test_enter_opens_a_session_and_q_stops_its_engine() -> None:
    async with opening() as hand:
        assert "llama" in hand.screen()
        assert hand.app.engine_link is None
        await hand.press("enter")
        d = await hand.bench()
        assert d.link.sent == [p.Open("/m/llama", r.SETTINGS), p.Triage(), p.Sweep()]
        await d.give(*r.opening(), *r.swept())
        assert hand.app.screen is d.bench
        assert "PPL 26.17" in d.screen()
        await hand.press("j", "4")
        await d.until(lambda: d.sent(p.SetFormat))
        await hand.press("q")
        await d.until(lambda: hand.app.return_code is not None)
        assert d.link.sent[-1] == p.Stop()
        assert hand.app.return_code == 0


async def test_a_path_and_a_profile_go_along() -> None:
    async with opening() as hand:
        await hand.press("right", *"demo", "enter")
        d = await hand.bench()
        assert d.link.sent[0] == p.Open("demo", LONG)


async def test_escape_twice_on_the_start_screen_leaves_without_an_engine() -> None:
    async with opening() as hand:
        await hand.press("q", "escape", "escape")
        assert hand.app.return_code is None
        await hand.press("escape")
        await hand.until(lambda: hand.app.return_code is not None)
        assert hand.app.return_code == 0
        assert hand.link.sent == []


async def test_ctrl_c_on_the_start_screen_leaves_at_once() -> None:
    async with opening() as hand:
        await hand.press("ctrl+c")
        await hand.until(lambda: hand.app.return_code is not None)
        assert hand.link.sent == []


async def test_what_cannot_be_opened_stays_on_the_start_screen_and_says_why() -> None:
    async with opening("config.json is missing: name the folder that has it") as hand:
        await hand.press("enter")
        await hand.until(lambda: "config.json is missing" in hand.screen())
        assert hand.app.engine_link is None
        await hand.press("down", "enter")
        d = await hand.bench()
        assert d.link.sent[0] == p.Open("demo", r.SETTINGS)


async def test_keys_of_the_start_screen_are_not_those_of_the_workbench_behind_it() -> None:
    async with opening() as hand:
        await hand.press("enter")
        d = await hand.bench()
        await d.give(*r.opening())
        await hand.press("slash")
        assert d.bench.handler.prompts.open
        await hand.press("escape", "escape")
        await hand.press("question_mark")
        assert "Move" in d.screen()
        await hand.press("escape")
        assert hand.app.screen is d.bench


async def test_two_enters_in_the_same_moment_open_one_workbench() -> None:
    async with opening() as hand:
        await hand.until(lambda: "/m/llama" in hand.start._inspections.known)
        press_at_once(hand.app, "enter", "enter", "enter")
        d = await hand.bench()
        await d.give(*r.opening())
        assert len(d.sent(p.Open)) == 1
        assert len(hand.app.screen_stack) == 2


async def test_a_source_typed_in_one_moment_is_opened() -> None:
    async with opening() as hand:
        press_at_once(hand.app, *"demo", "enter")
        d = await hand.bench()
        assert d.link.sent[0] == p.Open("demo", r.SETTINGS)
