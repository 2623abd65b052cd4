"""What a terminal is sent: cells that change, in few bytes, and nothing left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests import terminal as t
from tests.bench.bench_paint import beside, pretended, socket_there
from tests.terminal import Terminal


@pytest.fixture(scope="module")
def still() -> Iterator[Terminal]:
    """The interface of 80 × 24 over an engine that pretends, with its display frozen."""
    with t.home() as home, beside(home, *pretended(home, 37, 5)):
        t.wait_for(lambda: socket_there(home), "the pretended engine")
        with t.qtui(home, "demo", size=(80, 24)) as terminal:
            terminal.until(lambda s: (t.progress(s) or (0, 0))[0] > 3, what="a sweep")
            terminal.press("z")
            terminal.until(lambda s: any("frozen" in line for line in s), what="frozen")
            yield terminal


def sent(
    terminal: Terminal, key: str | bytes, look: Callable[[list[str]], object] | None = None
) -> int:
    """Bytes that a key makes the interface write, until nothing comes for a while.

    Args:
        look: what the screen looks like then; None for any output.
    """
    mark = len(terminal.chunks)
    terminal.press(key)
    if look is None:
        terminal.read(10)
    else:
        terminal.until(look)
    while terminal.read(0.3):
        pass
    return sum(len(chunk.data) for chunk in terminal.chunks[mark:])


def help_shown(screen: list[str]) -> bool:
    """The list of keys."""
    return any("searches and runs" in line for line in screen)


def cells(terminal: Terminal) -> list[object]:
    """What a person sees; a space has no colour but its background."""
    picture = terminal.picture
    found: list[object] = []
    for y in range(picture.lines):
        for x in range(picture.columns):
            cell = picture.buffer[y][x]
            drawn = cell.data != " " or cell.underscore or cell.reverse
            found.append(cell if drawn else (" ", cell.bg))
    return found


def test_the_help_is_one_frame_of_a_few_kilobytes(still: Terminal) -> None:
    # 8.4 kB where every cell is sent once.
    assert sent(still, "?", help_shown) < 7000
    assert sent(still, "?", lambda s: not help_shown(s)) < 7000


def test_a_moved_cursor_takes_a_few_hundred_bytes(still: Terminal) -> None:
    assert 0 < sent(still, t.DOWN) < 1500


def test_nothing_is_left_out(still: Terminal) -> None:
    for key in (t.END, "?", "?", " ", t.UP, " ", t.HOME, "\t", "N"):
        sent(still, key)
    while still.read(1.0):
        pass
    before = cells(still)
    assert sent(still, b"\x0c") > 4000  # ctrl+l sends everything again
    assert cells(still) == before
