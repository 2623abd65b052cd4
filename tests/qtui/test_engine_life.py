"""Engines that end, fail, and come back; and how the interface leaves them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from engine import protocol as p
from engine.client import EngineGoneError, OtherVersionError
from engine.session import decode_session, encode_session
from qtui.app import Appearance, QtuiApp
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving

LAST_WORDS = "the engine was killed by signal 9", "INFO sweep", "MemoryError: 3.1 GB wanted"


@asynccontextmanager
async def reconnecting(*links: r.Replay | Exception) -> AsyncIterator[Driver]:
    """An app that is given these links one after the other."""
    waiting = list(links)

    async def connect() -> r.Replay:
        link = waiting.pop(0)
        if isinstance(link, Exception):
            raise link
        return link

    settings = msgspec.structs.replace(r.SETTINGS, fresh=True)
    app = QtuiApp("demo", settings, r.PROFILE, connect, appearance=Appearance(theme="qtui-dark"))
    async with app.run_test(size=(80, 24)) as pilot:
        first = next(link for link in links if isinstance(link, r.Replay))
        yield Driver(app, pilot, first)


async def test_a_dead_engine_is_said_and_r_starts_another_that_goes_on() -> None:
    first, second = r.Replay([*r.opening(), *r.swept(5)]), r.Replay()
    async with reconnecting(first, second) as d:
        await d.until(lambda: d.app.session.effects.measured)
        first.die(*LAST_WORDS)
        await d.until(lambda: d.bench.banner.has_class("-shown"))
        await d.settled()
        screen = d.screen()
        assert "The engine was killed by signal 9." in screen
        assert "MemoryError: 3.1 GB wanted" in screen
        assert "/state/sessions/demo/engine.log" in screen
        assert "sweep int4-g128 ━" not in screen
        await d.pilot.press("j", "4")
        await d.pilot.pause()
        assert "no engine is running" in d.bench.message.text
        assert not d.table.pending
        # An engine that starts knows the session from its journal, and no job of it.
        session = decode_session(encode_session(d.app.session))
        session.jobs = {}
        second.give(session)
        await d.pilot.press("r")
        await d.until(lambda: len(second.sent) >= 3)
        # To measure anew was asked for once: an engine that comes back goes on.
        assert second.sent[:3] == [p.Open("demo", r.SETTINGS), p.Triage(), p.Sweep()]
        assert not d.bench.banner.has_class("-shown")
        await d.until(lambda: d.app.session is session)
        second.give(*r.swept())
        await d.until(lambda: "3" in session.jobs and session.jobs["3"].status == "done")


async def test_an_engine_that_cannot_start_is_said_too() -> None:
    link = r.Replay()
    async with reconnecting(EngineGoneError("no room on /run"), link) as d:
        await d.until(lambda: d.bench.banner.has_class("-shown"))
        assert "No room on /run." in d.bench.banner.text
        await d.pilot.press("r")
        await d.until(lambda: len(link.sent) >= 3)


async def test_an_engine_of_another_version_is_stopped_when_another_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped: list[str] = []
    monkeypatch.setattr("qtui.engine_link.look", lambda name: object())
    monkeypatch.setattr("qtui.engine_link.stop", stopped.append)
    link = r.Replay()
    async with reconnecting(OtherVersionError("demo", 77), link) as d:
        await d.until(lambda: d.bench.banner.has_class("-shown"))
        assert "(process 77) runs another version of qtui" in d.bench.banner.text
        assert "r stops it and starts one of this version" in d.bench.banner.text
        assert not stopped
        await d.pilot.press("r")
        await d.until(lambda: len(link.sent) >= 3)
        assert stopped == ["demo"]


async def test_an_engine_that_hangs_up_at_once_is_said_in_words() -> None:
    async with reconnecting(ConnectionResetError(104, "Connection reset by peer"), r.Replay()) as d:
        await d.until(lambda: d.bench.banner.has_class("-shown"))
        first = d.bench.banner.text.splitlines()[0]
        assert first == "The engine could not be reached: Connection reset by peer."


async def test_the_log_is_named_once_and_the_cause_is_whole() -> None:
    link = r.Replay([*r.opening()])
    async with reconnecting(link) as d:
        await d.until(lambda: d.app.session.baseline)
        link.die("the engine of demo ended")
        await d.until(lambda: d.bench.banner.has_class("-shown"))
        lines = d.bench.banner.text.splitlines()
        assert lines[0] == "The engine of demo ended."
        assert sum(r.Replay.log_path in line for line in lines) == 1


async def test_a_checkpoint_that_cannot_be_read_is_a_sentence_and_the_app_lives() -> None:
    why = "model-00002.safetensors: ends after 96 of 4,096 bytes: download it again"
    async with driving(
        p.Opened("demo", r.SETTINGS, {}),
        p.JobStarted(
            job="1", kind="open", command=p.Open("demo", p.Settings()), title="open", total=0
        ),
        p.JobEnded(job="1", kind="open", status="failed", message=why, exit_code=3),
        size=(100, 30),
    ) as d:
        assert d.screen().count(why) >= 2
        assert f"not open: {why}" in d.bench.scoreboard.text
        assert "r retries" in d.screen()
        await d.pilot.press("r")
        await d.until(lambda: len(d.sent(p.Open)) == 2)
        await d.pilot.press("q")
        await d.until(lambda: d.app.return_code is not None)
        assert d.app.return_code == 3


async def test_an_opening_that_was_cancelled_can_be_begun_again() -> None:
    async with driving(
        p.Opened("demo", r.SETTINGS, {}),
        p.JobStarted(
            job="1", kind="open", command=p.Open("demo", p.Settings()), title="open", total=0
        ),
        p.JobEnded(job="1", kind="open", status="cancelled"),
        size=(100, 30),
    ) as d:
        assert "not open: r opens it" in d.screen()
        opens = len(d.sent(p.Open))
        await d.pilot.press("r")
        await d.until(lambda: len(d.sent(p.Open)) == opens + 1)


async def test_quitting_stops_the_engine() -> None:
    async with driving(*r.opening()) as d:
        await d.pilot.press("q")
        await d.until(lambda: d.app.return_code is not None)
        assert d.link.sent[-1] == p.Stop()
        assert d.link.closed
        assert d.app.return_code == 0


async def test_quitting_leaves_an_engine_working_and_stopping_does_not() -> None:
    working = (*r.opening(), *r.swept(12))
    async with driving(*working) as d:
        await d.pilot.press("q")
        await d.until(lambda: d.app.return_code is not None)
        assert not d.sent(p.Stop)
        assert d.link.closed
        assert d.app.left_working == "sweep int4-g128"
    async with driving(*working) as d:
        await d.pilot.press("Q")
        await d.until(lambda: d.app.return_code is not None)
        assert d.link.sent[-1] == p.Stop(others=True)
        assert not d.app.left_working


async def test_an_engine_that_others_use_is_stopped_only_when_asked_twice() -> None:
    async with driving(*r.opening(), *r.swept(12)) as d:
        d.link.others = p.Clients(terminals=1, commands=("qtui eval",))
        await d.pilot.press("Q")
        await d.until(lambda: "Q again stops it anyway" in d.bench.message.text)
        said = "another terminal and `qtui eval` use this engine too: Q again stops it anyway"
        assert said in d.bench.message.text
        assert not d.sent(p.Stop)
        assert d.app.return_code is None
        await d.pilot.press("Q")
        await d.until(lambda: d.app.return_code is not None)
        assert d.link.sent[-1] == p.Stop(others=True)


async def test_a_command_is_not_ended_with_its_engine_unless_asked_twice() -> None:
    async with driving(*r.opening(), *r.swept(12)) as d:
        d.link.of_run = True
        await d.pilot.press("Q")
        await d.until(lambda: "runs this engine, and ends with it" in d.bench.message.text)
        await d.pilot.press("q")
        await d.until(lambda: d.app.return_code is not None)
        assert not d.sent(p.Stop)


async def test_what_a_new_engine_waits_for_is_said_in_the_banner() -> None:
    link = r.Replay()
    async with reconnecting(EngineGoneError("it died"), link) as d:
        await d.until(lambda: d.bench.banner.has_class("-shown"))
        d.app.screens.waiting("process 7, which had demo open, is ending: waiting for it")
        assert "Process 7, which had demo open, is ending: waiting for it." in d.bench.banner.text
        await d.pilot.press("r")
        await d.until(lambda: len(link.sent) >= 3)
        assert not d.bench.banner.has_class("-shown")


async def test_who_only_looks_sends_questions_alone() -> None:
    async with driving(*r.opening(), *r.swept(12), read_only=True) as d:
        await d.settled()
        assert not [c for c in d.link.sent if not isinstance(c, p.QUESTIONS)]
        for key in ("4", "u", "S", "x"):
            await d.pilot.press(key, "enter")
        await d.pilot.pause()
        assert not [c for c in d.link.sent if not isinstance(c, p.QUESTIONS)]
        layer = d.app.engine.session.layers.names[0]
        for question in (p.AskRanges(layer, "int4-g128"), p.AskErrorMap(layer, "int4-g128")):
            d.app.engine.ask(question)
        await d.until(lambda: d.sent(p.AskRanges) and d.sent(p.AskErrorMap))
        assert not d.table.pending
        await d.pilot.press("Q")
        await d.until(lambda: d.app.return_code is not None)
        assert not d.sent(p.Stop)


async def test_a_link_that_never_pauses_leaves_room_for_keys() -> None:
    class Flood(r.Replay):
        async def receive(self) -> p.Sent:
            return p.Sent(0, p.Stage("loading", 1, 2))

    async def connect() -> r.Replay:
        return link

    link = Flood()
    app = QtuiApp("demo", r.SETTINGS, r.PROFILE, connect, appearance=Appearance(theme="qtui-dark"))
    async with asyncio.timeout(20), app.run_test(size=(80, 24)) as pilot:
        await pilot._wait_for_screen()
        while app.pump.painted < 3:
            await asyncio.sleep(0)
        app.screens.workbench.action_do("quit")
        while app.return_code is None:
            await asyncio.sleep(0)
        assert link.sent[-1] == p.Stop()


async def test_nothing_is_painted_while_nothing_happens() -> None:
    async with driving(*r.opening()) as d:
        await d.settled()
        painted = d.app.pump.painted
        for _ in range(50):
            await d.pilot.pause()
        assert d.app.pump.painted == painted


async def test_many_events_are_a_few_repaints() -> None:
    async with driving(*r.opening()) as d:
        painted = d.app.pump.painted
        for _ in range(20):
            d.link.give(*r.triaged(), *r.swept())
        await d.until(lambda: d.link.heard())
        assert d.app.pump.painted - painted < 20


async def test_a_terminal_that_is_behind_is_sent_the_newest_state_once_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = True
    monkeypatch.setattr(QtuiApp, "_is_behind", lambda self: slow)
    async with driving() as d:
        painted = d.app.pump.painted
        d.link.give(*r.opening(), *r.triaged(), *r.swept())
        await d.until(d.link.heard)
        await d.pilot.pause(0.3)
        assert d.app.pump.painted == painted
        slow = False
        await d.until(lambda: d.app.pump.painted == painted + 1)
        await d.settled()
        assert "37 layers" in d.screen()


@pytest.fixture(scope="module")
def imported() -> set[str]:
    """Modules that the interface imports in a fresh interpreter."""
    code = "import sys, qtui.app; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(told.stdout.split())


@pytest.mark.parametrize("module", ["torch", "transformers", "datasets", "numpy", "plotext"])
def test_the_interface_starts_without(module: str, imported: set[str]) -> None:
    assert "qtui.app" in imported
    assert module not in imported
