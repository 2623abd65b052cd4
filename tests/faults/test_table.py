"""The table of what was survived has a row for every long test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.table import HEAD, PAGE, put


def test_a_cell_is_written_into_its_row_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        f"# Before\n\n{HEAD}\n|---|---|---|---|\n| a b | 2 | – | – |\n| c | 3 | – | – |\n\nafter\n"
    )
    put("c", "9: 0", page)
    lines = page.read_text().splitlines()
    assert lines[:5] == ["# Before", "", HEAD, "|---|---|---|---|", "| a b | 2 | – | – |"]
    assert lines[5].startswith("| c | 3 | 9: 0 | 20")
    assert lines[6:] == ["", "after"]
    put("a", "5", page, short=True)
    assert page.read_text().splitlines()[4] == "| a b | 5 | – | – |"
    with pytest.raises(LookupError, match="no row 'after'"):
        put("after", "", page)
    with pytest.raises(LookupError, match="no row 'd'"):
        put("d", "", page)


def test_every_long_test_has_its_row(tmp_path: Path) -> None:
    tests = PAGE.parents[1]
    rows = [
        line.split('put("')[1].split('"')[0]
        for path in (*(tests / "faults").glob("test_*.py"), tests / "test_attach.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.lstrip().startswith('put("') and path.name != Path(__file__).name
    ]
    assert len(rows) >= 8
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    for row in rows:
        put(row, "found", page)
