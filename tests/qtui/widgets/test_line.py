"""Lines of text: which changes lay the screen out anew."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from textual.app import ComposeResult
from textual.screen import Screen

from qtui.widgets.line import Lines
from tests.qtui.starting import Hand, Shell


class Seen(Lines):
    """Counts the layouts it asks for."""

    laid_out = 0

    def refresh(self, *args: object, layout: bool = False, **kwargs: object) -> Seen:
        self.laid_out += layout
        return super().refresh(*args, layout=layout, **kwargs)  # type: ignore[arg-type]


class Page(Screen[None]):
    """One text, and a line below it."""

    def __init__(self, height: str, wrap: bool) -> None:
        super().__init__()
        self.seen = Seen(wrap=wrap)
        self.seen.styles.height = height

    def compose(self) -> ComposeResult:
        yield self.seen
        below = Lines(id="below")
        below.set_lines([[("below", "")]])
        yield below


@asynccontextmanager
async def page(height: str, *, wrap: bool) -> AsyncIterator[tuple[Hand, Seen]]:
    first = Page(height, wrap)
    app = Shell(first)
    async with app.run_test(size=(40, 20)) as pilot:
        await pilot.pause()
        yield Hand(app, pilot), first.seen


@pytest.mark.parametrize("height", ["auto", "3"])
async def test_wrapped_text_takes_the_lines_it_needs_and_no_layout_else(height: str) -> None:
    async with page(height, wrap=True) as (d, seen):
        for words, lines in (("one", 1), ("w" * 90, 3), ("v" * 100, 3), ("two", 1), ("", 1)):
            before, stood = seen.laid_out, seen.size.height
            seen.set_lines([[(words, "")]])
            await d.pilot.pause()
            wanted = lines if height == "auto" else 3
            assert seen.size.height == wanted
            assert d.screen().splitlines()[wanted].startswith("below")
            changed = height == "auto" and stood != wanted
            assert (seen.laid_out > before) is changed


async def test_text_that_is_cut_takes_one_line_each_however_long() -> None:
    async with page("auto", wrap=False) as (d, seen):
        seen.set_lines([[("w" * 90, "")], [("x", "")]])
        await d.pilot.pause()
        assert seen.size.height == 2
        before = seen.laid_out
        seen.set_lines([[("w", "")], [("x" * 90, "")]])
        await d.pilot.pause()
        assert seen.size.height == 2
        assert seen.laid_out == before


async def test_the_same_number_of_lines_may_need_other_room() -> None:
    async with page("auto", wrap=True) as (d, seen):
        seen.set_lines([[("a", "")], [("b" * 50, "")]])
        await d.pilot.pause()
        assert seen.size.height == 3
        seen.set_lines([[("a", "")], [("b", "")]])
        await d.pilot.pause()
        assert seen.size.height == 2
