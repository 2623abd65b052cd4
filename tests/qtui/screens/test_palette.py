"""The command palette."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from textual.events import MouseScrollDown
from textual.screen import Screen

from qtui.screens.palette import Palette, PaletteEntry, answers, search
from qtui.views.text import PLAIN, UNICODE
from qtui.widgets.choices import Choices
from tests.qtui.starting import Hand, Shell

ENTRIES = [
    PaletteEntry("sweep", "Sweep: measure every layer", "s", "Engine"),
    PaletteEntry("cancel", "Cancel the running job", "x", "Engine", "nothing is running"),
    PaletteEntry("hold.4", "Hold int4-g128", "4", "Recipe"),
    PaletteEntry("hold.q4", "Hold q4_k", "", "Recipe", "256 does not divide any row"),
    PaletteEntry("quit", "Quit", "q", "View"),
    PaletteEntry("theme.ember", "Theme ember", "", "View"),
]


class Asking(Hand):
    """An open palette."""

    palette: Palette
    given: list[str | None]


@asynccontextmanager
async def asking(
    entries: Sequence[PaletteEntry] = ENTRIES,
    size: tuple[int, int] = (80, 24),
    ascii: bool = False,
) -> AsyncIterator[Asking]:
    app = Shell(Screen())
    async with app.run_test(size=size) as pilot:
        d = Asking(app, pilot)
        d.given = []
        d.palette = Palette(entries, PLAIN if ascii else UNICODE)
        await app.push_screen(d.palette, d.given.append)
        await pilot.pause()
        yield d


def ids(d: Asking) -> list[str]:
    return [entry.id for entry, _ in d.palette.found]


def test_words_are_found_in_any_order_and_letters_in_theirs() -> None:
    assert search("layer sweep", "Sweep: measure every layer")
    found = search("smel", "Sweep: measure every layer")
    assert found is not None
    assert "".join("Sweep: measure every layer"[at] for at in sorted(found.places)) == "Smel"
    assert search("xq", "Quit") is None
    assert search("zz", "Quit x") is None


def test_a_capital_that_is_two_letters_small_is_found_in_its_place() -> None:
    found = search("b", "İİb")
    assert found is not None
    assert found.places == {2}


@pytest.mark.parametrize(
    ("query", "first"),
    [("quit", "quit"), ("hold", "hold.4"), ("q4", "hold.q4"), ("measure", "sweep"),
     ("theme.em", "theme.ember"), ("engine", "sweep"), ("HOLD INT4", "hold.4")],
)  # fmt: skip
def test_the_best_answer_stands_first(query: str, first: str) -> None:
    assert answers(query, ENTRIES)[0][0].id == first


def test_a_query_that_fits_in_countless_ways_is_answered_all_the_same() -> None:
    """Trying every way to place the letters would take longer than anybody waits."""
    entries = [PaletteEntry(f"x{n}", "ab" * 60) for n in range(200)]
    assert answers("a" * 30 + "c", entries) == []
    assert len(answers("aa" * 15, entries)) == 200


async def test_typing_narrows_and_enter_gives_the_id() -> None:
    async with asking() as d:
        assert len(ids(d)) == len(ENTRIES)
        await d.press(*"them")
        assert ids(d)[0] == "theme.ember"
        await d.press("enter")
        assert d.given == ["theme.ember"]


async def test_what_cannot_be_done_says_why_and_stays() -> None:
    async with asking() as d:
        assert "(nothing is running)" in d.screen()
        await d.press(*"cancel")
        assert "! not now: nothing is running" in d.screen()
        await d.press("enter")
        assert "x not now: nothing is running" in d.screen()
        assert d.given == []
        assert d.app.screen is d.palette
        await d.press("escape")
        assert d.given == [None]


async def test_nothing_found_is_said_and_enter_does_nothing() -> None:
    async with asking() as d:
        await d.press(*"zzz", "enter", "down")
        assert "no match" in d.screen()
        assert d.given == []


async def test_keys_go_round_and_q_is_a_letter() -> None:
    async with asking() as d:
        await d.press("up")
        assert d.palette.current is not None
        assert d.palette.current.id == "theme.ember"
        await d.press("down", "tab", "pagedown", "pageup")
        assert d.palette.choices.cursor == 0
        await d.press("q")
        assert d.palette.entry.value == "q"
        await d.press("ctrl+u")
        assert len(ids(d)) == len(ENTRIES)


async def test_what_stands_at_the_end_has_the_room_that_its_title_leaves() -> None:
    about = "types of all tensors, for llama-quantize"
    async with asking([PaletteEntry("t", "gguf", about)], (80, 24)) as d:
        assert about in d.screen()


async def test_click_runs_and_the_wheel_scrolls() -> None:
    many = [PaletteEntry(f"n{n}", f"Number {n}", "", "Numbers") for n in range(200)]
    async with asking(many) as d:
        choices = d.palette.query_one(Choices)
        region = choices.region
        for _ in range(4):
            choices.post_message(_wheel(region.x + 3, region.y + 1))
        await d.pilot.pause()
        assert choices.top == 12
        await d.pilot.click(choices, offset=(5, 2))
        assert d.given == ["n14"]


def _wheel(x: int, y: int) -> MouseScrollDown:
    return MouseScrollDown(None, x, y, 0, 1, 0, False, False, False, x, y)


async def test_a_note_is_no_key() -> None:
    noted = PaletteEntry("gguf", "gguf", note="a whole file")
    async with asking([noted, PaletteEntry("quit", "Quit", "q")]) as d:
        width = d.palette.choices.content_size.width
        styles = [dict(d.palette._draw(row, width)) for row in (0, 1)]
        assert styles[0]["a whole file"] == "$dim"
        assert styles[1]["q"] == "bold $primary"


async def test_a_small_ascii_terminal_shows_all_of_it() -> None:
    foreign = PaletteEntry("theme.x", "Theme \x1b[31mevil" + "x" * 90, "F12", "View")
    async with asking([*ENTRIES, foreign], (60, 18), ascii=True) as d:
        screen = d.screen()
        assert screen.isascii()
        assert "\x1b" not in screen
        assert "enter runs it" in screen
        await d.press("up")
        assert "F12" in d.screen()
        assert d.palette.query_one(Choices).region.bottom <= 18
