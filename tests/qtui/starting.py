"""A start screen over sessions and inspections of a test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from textual.app import App
from textual.pilot import Pilot
from textual.screen import Screen

from engine.opening.inspection import Inspection
from engine.profiles import Profile
from engine.store.past_sessions import PastSession
from qtui.screens.start.screen import Start
from qtui.user.themes import DEFAULT_THEME, load_themes
from qtui.views.text import PLAIN, UNICODE

NOW = 1_700_000_000.0


def session(name: str, source: str = "", **known: Any) -> PastSession:
    """A past session of which much is known."""
    about: dict[str, Any] = {
        "when": NOW - 2 * 3600, "checkpoint": name, "architecture": "LlamaForCausalLM",
        "parameters": 1_100_000_000, "layers": 37, "changed": 3, "measured": 36,
        "ppl_reference": 26.17, "ppl_recipe": 26.42, "bits_per_weight": 4.31,
    }  # fmt: skip
    return PastSession(name=name, source=source or f"/m/{name}", **{**about, **known})


def looked(source: str, **found: Any) -> Inspection:
    """A checkpoint that can be opened, but for what is said otherwise."""
    about: dict[str, Any] = {
        "architecture": "LlamaForCausalLM", "parameters": 1_100_000_000, "bytes": 2_200_000_000,
        "dtype": "bfloat16", "layers": 155,
    }  # fmt: skip
    return Inspection(source=source, **{**about, **found})


def profile(tokens: int = 16384) -> Profile:
    return Profile(
        tokens=tokens, seq_len=2048, stride=0, batch_tokens=2048, formats=("int4-g128", "int8"),
        sweep_formats=("int4-g128",), estimate_formats=("int3-g128", "int4-g128"), draws=2,
        calib_tokens=8192, sigma=4.0, fps=8, nice=10, keys={}, findings={},
    )  # fmt: skip


PROFILES = {"quick": profile(4096), "standard": profile(), "thorough": profile(131072)}


class Shell(App[None]):
    """Shows one screen, and keeps what it says."""

    ENABLE_COMMAND_PALETTE = False

    def __init__(self, first: Screen[None]) -> None:
        super().__init__()
        self.first = first
        self.animation_level = "none"
        self.chosen: list[tuple[str, str]] = []
        self.left = 0
        for theme in load_themes().values():
            self.register_theme(theme.theme())
        self.theme = DEFAULT_THEME

    def get_default_screen(self) -> Screen[object]:
        return self.first  # type: ignore[return-value]

    def on_start_chosen(self, message: Start.Chosen) -> None:
        self.chosen.append((message.source, message.profile_name))

    def on_start_leave(self) -> None:
        self.left += 1


class Hand:
    """A pilot that can wait and read."""

    def __init__(self, app: App[None], pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the app run until something is so."""
        async with asyncio.timeout(20):
            while not condition():
                await self.pilot.pause()
                await asyncio.sleep(0.002)

    async def press(self, *keys: str) -> None:
        """Press keys, and let them be heard."""
        await self.pilot.press(*keys)
        await self.pilot.pause()

    def screen(self) -> str:
        """The characters on the screen."""
        width = self.app.size.width
        strips = self.app.screen._compositor.render_strips()
        return "\n".join(strip.crop(0, width).text for strip in strips)


class Starting(Hand):
    """A running start screen."""

    def __init__(self, app: Shell, start: Start, pilot: Pilot[None]) -> None:
        super().__init__(app, pilot)
        self.shell, self.start = app, start

    async def type(self, text: str) -> None:
        """Type into the line, which has the focus."""
        await self.press(*("slash" if char == "/" else char for char in text))


async def fine(source: str) -> Inspection:
    """Nothing is wrong with anything."""
    return looked(source)


@asynccontextmanager
async def starting(
    sessions: Sequence[PastSession] | Callable[[], Sequence[PastSession]] = (),
    *,
    inspect: Callable[[str], Awaitable[Inspection]] = fine,
    hub_ids: Sequence[str] = (),
    size: tuple[int, int] = (80, 24),
    ascii: bool = False,
    loaded: bool = True,
    problems: Sequence[str] = (),
    remove: Callable[[str], None] | None = None,
) -> AsyncIterator[Starting]:
    """A start screen that has read its sessions."""
    read = sessions if callable(sessions) else lambda: list(sessions)
    start = Start(
        read, inspect, PROFILES, "standard", hub_ids=lambda: list(hub_ids),
        remove=remove, glyphs=PLAIN if ascii else UNICODE, clock=lambda: NOW, problems=problems,
    )  # fmt: skip
    app = Shell(start)
    async with app.run_test(size=size) as pilot:
        hand = Starting(app, start, pilot)
        if loaded:
            await hand.until(lambda: "reading" not in start.head.text)
        yield hand
