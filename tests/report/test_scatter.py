"""KL over size, drawn with letters."""

from __future__ import annotations

from engine.report.tables.scatter import COLUMNS, LINES, Point, scatter


def test_letters_are_where_size_and_kl_put_them() -> None:
    text = scatter(
        [Point("eight", 8_000_000, 0.0001), Point("four", 4_000_000, 0.01), Point("two", 0, 1.0)]
    )
    lines = text.splitlines()
    assert lines[0] == "KL·10³ over size"
    plot = [line.partition("│")[2] for line in lines[1 : 1 + LINES]]
    assert plot[0] == "C"
    assert plot[LINES - 1].index("A") == COLUMNS - 1
    (middle,) = (y for y, line in enumerate(plot) if "B" in line)
    assert middle in (LINES // 2 - 1, LINES // 2)  # half of the way in the logarithm
    assert plot[middle].index("B") in (COLUMNS // 2 - 1, COLUMNS // 2)
    assert lines[1].startswith("1000 │C")
    assert lines[-3:] == ["  A eight", "  B four", "  C two"]
    assert "8.0 MB" in lines[-4]


def test_those_in_one_place_are_all_shown_and_zero_is_lowest() -> None:
    text = scatter([Point("same", 10, 0.0), Point("a", 10, 0.5), Point("b", 10, 0.5)])
    plot = [line.partition("│")[2].strip() for line in text.splitlines()[1 : 1 + LINES]]
    assert plot[LINES - 1] in ("A", "BAC", "CAB", "ABC", "BCA", "CBA", "ACB")
    assert sum(letter in "".join(plot) for letter in "ABC") == 3


def test_one_alone_is_no_plot() -> None:
    assert scatter([Point("a", 10, 0.5)]) == ""
    assert scatter([Point("a", 10, 0.0), Point("b", 12, 0.0)]) == ""
    assert scatter([Point("a", 10, float("nan")), Point("b", 12, 0.1)]) == ""
