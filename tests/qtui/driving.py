"""An app over a replayed engine, and waiting for what is to come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from textual.app import App
from textual.events import Key, Paste
from textual.pilot import Pilot

from engine import protocol as p
from engine.profiles import Profile
from qtui.app import Appearance, QtuiApp
from qtui.user.commands import Command
from tests.qtui import replay
from tests.qtui.replay import Replay

CHARACTERS = {"slash": "/", "colon": ":", "equals_sign": "=", "space": " ", "minus": "-"}
"""What keys with a name of their own type."""


class Driver:
    """A running app, its pilot, and the engine it is connected to."""

    def __init__(self, app: QtuiApp, pilot: Pilot[None], link: Replay) -> None:
        self.app, self.pilot, self.link = app, pilot, link
        self.bench = app.screens.workbench
        self.table = self.bench.table

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the app run until something is so."""
        async with asyncio.timeout(20):
            while not condition():
                await self.pilot.pause()
                await asyncio.sleep(0.002)

    async def give(self, *events: p.AnyEvent) -> None:
        """Let the engine say something, and the app draw it."""
        painted = self.app.pump.painted
        self.link.give(*events)
        await self.until(lambda: self.app.pump.painted > painted and self.link.heard())
        await self.settled()

    async def settled(self) -> None:
        """Let everything that is due be drawn."""
        await self.until(lambda: not self.app.pump.due)
        await self.pilot.pause()

    def at_once(self, *keys: str) -> None:
        """Press keys faster than any of them is heard, as they come over a slow line."""
        press_at_once(self.app, *keys)

    async def paste(self, text: str) -> None:
        """Paste into what has the focus: a path is long to type."""
        self.app.post_message(Paste(text))
        await self.settled()

    def still(self) -> bool:
        """Whether everything that is known is drawn: rows in their order, the plot, the past."""
        table, detail = self.table, self.bench.detail
        histogram = detail.histogram
        plotted = (
            not histogram.display
            or not histogram._has_room()
            or histogram.found is None
            or bool(histogram.drawn)
        )
        return (
            self.link.heard()
            and not self.app.pump.due
            and table._later is None
            and not detail._history.pending
            and plotted
        )

    def screen(self) -> str:
        """The characters on the screen."""
        width = self.app.size.width
        lines = self.app.screen._compositor.render_strips()
        return "\n".join(strip.crop(0, width).text for strip in lines)

    def sent(self, kind: type[p.Command]) -> list[p.Command]:
        """Commands of one kind that the engine was sent."""
        return [command for command in self.link.sent if isinstance(command, kind)]

    def ask(self, kind: type[p.Command], index: int = -1) -> str:
        """What identifies a command of one kind that the engine was sent; the last if not said."""
        pairs = zip(self.link.asks, self.link.sent, strict=True)
        return [ask for ask, command in pairs if isinstance(command, kind)][index]


def press_at_once(app: App[None], *keys: str) -> None:
    """Let an app find these keys in its queue, all of them before it has heard the first."""
    assert app._driver is not None
    for key in keys:
        event = Key(key, key if len(key) == 1 else CHARACTERS.get(key))
        event.set_sender(app)
        app._driver.send_message(event)


@asynccontextmanager
async def driving(
    *events: p.AnyEvent,
    size: tuple[int, int] = (120, 40),
    profile: Profile = replay.PROFILE,
    ascii: bool = False,
    keymap: Mapping[str, str] | None = None,
    commands: tuple[Command, ...] = (),
    read_only: bool = False,
) -> AsyncIterator[Driver]:
    """An app that was shown these events."""
    link = Replay()

    async def connect() -> Replay:
        return link

    app = QtuiApp(
        "demo",
        replay.SETTINGS,
        profile,
        connect,
        Appearance(ascii, "qtui-dark", keymap=keymap or {}, commands=commands),
        read_only=read_only,
    )
    async with app.run_test(size=size) as pilot:
        driver = Driver(app, pilot, link)
        await driver.until(lambda: read_only or len(link.sent) >= 3)
        if events:
            await driver.give(*events)
        yield driver
