"""Only cells that change are sent, and the terminal shows what it would if all of them were."""

from __future__ import annotations

import pyte
from hypothesis import given, settings
from hypothesis import strategies as st

from qtui.changed_cells import Picture, Piece

SIZE = 24, 5
STYLES = (
    "", "1", "4;38;2;200;0;10", "38;2;200;0;10;48;2;0;0;9", "7;32", "48;5;17", "2;39;49", "90;107",
)  # fmt: skip
TEXTS = st.text(st.sampled_from("ab  █▏│≈→語é"), min_size=1, max_size=9)
PIECES = st.lists(
    st.tuples(
        st.integers(0, SIZE[1] - 1),
        st.integers(0, SIZE[0] - 1),
        st.lists(st.tuples(TEXTS, st.sampled_from(STYLES)), min_size=1, max_size=3),
    ),
    max_size=6,
)


def cut(piece: Piece) -> Piece:
    """A piece as far as it fits, and no half of a wide character."""
    y, x, texts = piece
    kept: list[tuple[str, str]] = []
    for text, style in texts:
        for character in text:
            width = 2 if character == "語" else 1
            if x + width <= SIZE[0]:
                kept.append((character, style))
                x += width
    return y, piece[1], kept


def plainly(stream: pyte.Stream, pieces: list[Piece]) -> None:
    """Send every cell."""
    for y, x, texts in pieces:
        stream.feed(f"\x1b[{y + 1};{x + 1}H")
        for text, style in texts:
            stream.feed(f"\x1b[{style}m{text}\x1b[0m")


def seen(screen: pyte.Screen) -> list[object]:
    """What a person sees: a space without its colour, unless something is drawn on it.

    Half of a wide character is a space, as terminals have it; pyte leaves what it was.
    """
    found: list[object] = []
    for y in range(SIZE[1]):
        row = [screen.buffer[y][x] for x in range(SIZE[0])]
        texts = [cell.data for cell in row]
        for x, cell in enumerate(row):
            text = texts[x]
            if (text == "" and (x == 0 or texts[x - 1] != "語")) or (
                text == "語" and texts[x + 1] != ""
            ):
                cell = cell._replace(data=" ")
            if cell.data == " " and not (cell.underscore or cell.reverse or cell.strikethrough):
                found.append((" ", cell.bg))
            else:
                found.append(cell)
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=4), st.booleans())
def test_the_terminal_shows_the_same_as_if_all_were_sent(
    updates: list[list[Piece]], forgets: bool
) -> None:
    expected, found = pyte.Screen(*SIZE), pyte.Screen(*SIZE)
    whole: list[Piece] = [(y, 0, [("." * SIZE[0], "")]) for y in range(SIZE[1])]
    picture = Picture()
    for at, update in enumerate([whole, *updates]):
        pieces = [cut(piece) for piece in update]
        if forgets and at == 2:
            picture.forget()
            pieces = [*whole, *pieces]
        plainly(pyte.Stream(expected), pieces)
        pyte.Stream(found).feed(picture.changes(SIZE, pieces))
        assert seen(found) == seen(expected)
        assert found.cursor.attrs == pyte.Screen(1, 1).cursor.attrs


def test_what_is_shown_already_is_not_sent() -> None:
    picture = Picture()
    line = [("sweep ", "1"), ("17/36", "32"), (" left", "")]
    assert picture.changes((20, 1), [(0, 0, line)])
    assert picture.changes((20, 1), [(0, 0, line)]) == ""
    assert picture.changes((20, 1), [(0, 6, [("18/36", "32")])]) == "\x1b[1;8H\x1b[32m8\x1b[m"


def test_a_forgotten_picture_or_another_size_is_sent_whole() -> None:
    picture = Picture()
    line = [("sweep", "")]
    first = picture.changes((20, 1), [(0, 0, line)])
    picture.forget()
    assert picture.changes((20, 1), [(0, 0, line)]) == first
    assert picture.changes((21, 1), [(0, 0, line)]) == first


def test_spaces_take_no_codes_of_colours_that_nobody_sees() -> None:
    sent = Picture().changes((12, 1), [(0, 0, [("a", "31"), (" ", "1;32"), ("b", "31")])])
    assert sent == "\x1b[1;1H\x1b[31ma b\x1b[m"
