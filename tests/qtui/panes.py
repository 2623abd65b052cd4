"""One widget on a screen of its own, and sessions for it to show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.widget import Widget

from engine import protocol as p
from engine.session import Session, apply, recipe_hash
from qtui.user.themes import DEFAULT_THEME, load_themes
from tests.qtui import replay as r


class Stage(App[None]):
    """Shows one widget, with the colours of the themes."""

    CSS = "#shown { width: 1fr; height: 1fr; } #shown.-small { height: 3; }"

    def __init__(self, shown: Widget) -> None:
        super().__init__()
        shown.id = "shown"
        self.shown = shown
        for theme in load_themes().values():
            self.register_theme(theme.theme())
        self.theme = DEFAULT_THEME

    def compose(self) -> ComposeResult:
        yield self.shown

    def screen_text(self) -> str:
        """The characters on the screen."""
        return "\n".join(strip.text for strip in self.screen._compositor.render_strips())


@asynccontextmanager
async def staged(
    shown: Widget, width: int, height: int
) -> AsyncIterator[tuple[Stage, Pilot[None]]]:
    """A widget in a terminal of this size."""
    app = Stage(shown)
    async with app.run_test(size=(width, height)) as pilot:
        yield app, pilot


async def until(pilot: Pilot[None], condition: Callable[[], object]) -> None:
    """Let the app run until something is so."""
    async with asyncio.timeout(20):
        while not condition():
            await pilot.pause()
            await asyncio.sleep(0.002)


def told(session: Session, *events: p.AnyEvent) -> Session:
    """The session, with these events folded."""
    for event in events:
        apply(session, event)
    return session


def whole() -> Session:
    """A session with a model, its triage and its sweep; q, k and v, and gate and up are fused."""
    listed = r.listed()
    groups = [
        2 * block + ("self_attn" in name)
        if name.endswith(("gate_proj", "up_proj", "q_proj", "k_proj", "v_proj"))
        else -1
        for name, block in zip(listed.names, listed.blocks, strict=True)
    ]
    opening = [
        msgspec.structs.replace(event, groups=groups)
        if isinstance(event, p.LayersListed)
        else event
        for event in r.opening()
    ]
    return told(Session(), *opening, *r.triaged(), *r.swept())


def holding(session: Session, layers: list[str], format: str, ppl: float | None = None) -> None:
    """Let layers hold a format, and the recipe score so much."""
    told(session, r.changed(session, layers, format))
    if ppl is not None:
        score = r.score(recipe_hash(session.recipe()), ppl=ppl, half=0.05)
        told(session, p.Learned(("score",), (score,)))


def undone(session: Session) -> p.RecipeChanged:
    """What the engine says when the last change is taken back."""
    step = session.history[session.position - 1]
    return p.RecipeChanged(
        how="undo", layers=step.layers, before=step.after, after=step.before,
        bits=[16] * len(step.layers),
    )  # fmt: skip
