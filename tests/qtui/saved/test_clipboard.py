"""Copying: the bytes a terminal gets hold the text, the file always does, nothing is raised."""

from __future__ import annotations

import base64
import csv
import io
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import UsageError
from qtui.saved.clipboard import MOST_BYTES, copy, sequences, what_to_copy
from tests.qtui import replay as r
from tests.qtui.driving import driving
from tests.qtui.saving import BROKEN, LAYER, view


class Driver:
    """Takes what is written to the terminal."""

    def __init__(self) -> None:
        self.wrote: list[str] = []

    def write(self, text: str) -> None:
        self.wrote.append(text)


class App:
    """Writes as Textual does."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def copy_to_clipboard(self, text: str) -> None:
        encoded = base64.b64encode(text.encode()).decode()
        self._driver.write(f"\x1b]52;c;{encoded}\a")


class Gone:
    """A terminal that has not been set up."""

    def copy_to_clipboard(self, text: str) -> None:
        raise AssertionError("Driver must be in application mode")


def decoded(written: str) -> str:
    """What a terminal makes of a plain OSC 52 sequence."""
    found = re.fullmatch(r"\x1b\]52;c;([A-Za-z0-9+/=]*)\x07", written)
    assert found, written[:40]
    return base64.b64decode(found[1], validate=True).decode()


async def test_textual_writes_the_sequence_and_the_file_holds_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with driving(*r.opening()) as driver:
        wrote = Driver()
        assert driver.app._driver is not None
        monkeypatch.setattr(driver.app._driver, "write", wrote.write)
        copied = copy(driver.app, "KL·10³\n", tmp_path, {"TERM": "xterm-256color"})
        sent = [each for each in wrote.wrote if each.startswith("\x1b]52")]
    assert [decoded(each) for each in sent] == ["KL·10³\n"]
    assert copied.sent
    assert copied.path == tmp_path / "copied.txt"
    assert copied.path.read_text() == "KL·10³\n"
    assert copied.how == f"copied 7 characters to the clipboard and {copied.path}"


def test_outside_multiplexers_one_sequence_is_written(tmp_path: Path) -> None:
    driver = Driver()
    copy(App(driver), "text", tmp_path, {})
    assert [decoded(each) for each in driver.wrote] == ["text"]


@given(st.text())
def test_tmux_unwraps_its_sequence_to_the_plain_one(text: str) -> None:
    (wrapped,) = sequences(text, {"TMUX": "/tmp/tmux-0/default,1,0"})
    assert wrapped.startswith("\x1bPtmux;")
    assert wrapped.endswith("\x1b\\")
    inner = wrapped.removeprefix("\x1bPtmux;").removesuffix("\x1b\\")
    assert "\x1b" not in inner.replace("\x1b\x1b", "")
    plain = inner.replace("\x1b\x1b", "\x1b")
    assert decoded(plain) == text.encode(errors="replace").decode()


@pytest.mark.parametrize("size", [0, 1, 180, 190, 5000, MOST_BYTES])
def test_screen_puts_short_pieces_together_to_the_plain_one(size: int) -> None:
    (wrapped,) = sequences("x" * size, {"STY": "1.host"})
    # What screen does: every control string from ESC P up to ESC \ goes out as it is.
    pieces = re.findall(r"\x1bP(.*?)\x1b\\", wrapped, re.DOTALL)
    assert all(len(piece) <= 256 for piece in pieces)
    assert decoded("".join(pieces)) == "x" * size


def test_tmux_is_given_the_file_too(tmp_path: Path) -> None:
    program = tmp_path / "tmux"
    (tmp_path / "pipe").mkdir()
    program.write_text(f'#!/bin/sh\nprintf "%s " "$@" > {tmp_path}/pipe/new\n'
                       f"mv {tmp_path}/pipe/new {tmp_path}/pipe/asked\n")  # fmt: skip
    program.chmod(0o755)
    driver = Driver()
    environ = {"TMUX": "x", "PATH": f"{tmp_path}:/usr/bin:/bin"}
    copied = copy(App(driver), "text", tmp_path / "state", environ)
    asked = tmp_path / "pipe" / "asked"
    while not asked.exists():
        os.sched_yield()
    assert asked.read_text().split() == ["load-buffer", "-w", str(copied.path)]
    assert decoded(driver.wrote[0]) == "text"


def test_more_than_terminals_take_goes_to_the_file_alone(tmp_path: Path) -> None:
    driver = Driver()
    just = copy(App(driver), "x" * MOST_BYTES, tmp_path, {})
    assert just.sent
    assert len(driver.wrote[0]) <= 100_000 + len("\x1b]52;c;\a")
    more = copy(App(driver), "é" * (MOST_BYTES // 2 + 1), tmp_path, {})
    assert not more.sent
    assert len(driver.wrote) == 1
    assert more.path is not None
    assert more.path.read_text() == "é" * (MOST_BYTES // 2 + 1)
    assert "not to the clipboard: terminals accept 74,994 bytes" in more.how


def test_a_dumb_terminal_is_left_alone(tmp_path: Path) -> None:
    driver = Driver()
    copied = copy(App(driver), "text", tmp_path, {"TERM": "dumb"})
    assert driver.wrote == []
    assert copied.how == f"copied 4 characters to {tmp_path / 'copied.txt'}"


def test_a_stalled_terminal_is_not_waited_for(tmp_path: Path) -> None:
    from textual.drivers._writer_thread import WriterThread

    class Stalled(Driver):
        _writer_thread = WriterThread(io.StringIO())  # never started: nothing is taken

        def write(self, text: str) -> None:
            self._writer_thread.write(text)

    driver = Stalled()
    for _ in range(40):
        copied = copy(App(driver), "text", tmp_path, {})
    assert not copied.sent
    assert copied.path is not None


def test_a_terminal_that_is_gone_and_a_disk_that_refuses_are_said(tmp_path: Path) -> None:
    assert not copy(Gone(), "text", tmp_path, {}).sent
    (tmp_path / "file").write_text("")
    driver = Driver()
    copied = copy(App(driver), "text", tmp_path / "file" / "state", {})
    assert copied.path is None
    assert copied.sent
    assert copied.how.startswith("copied 4 characters to the clipboard; ")
    assert "cannot be written" in copied.how
    lost = copy(Gone(), "text", tmp_path / "file" / "state", {})
    assert lost.how.startswith("not copied: ")


# --- what is copied ---------------------------------------------------------------------------


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))


def test_the_row_under_the_cursor_is_copied_in_full_precision() -> None:
    shown = view()
    (row,) = rows(what_to_copy(shown, whole=False))
    fact = shown.session.sensitivity(shown.session.index[LAYER], r.EFFECTS)
    assert fact is not None
    assert row["layer"] == LAYER
    assert float(row["kl_nats_per_token"]) == fact.kl
    assert float(row["dppl_high"]) == fact.dppl_high


def test_marked_rows_are_copied_in_the_order_shown_hidden_ones_after_them() -> None:
    names = view().session.layers.names
    shown = view(rows=(9, 2, 5), marked=frozenset({names[2], names[9], names[20]}))
    found = [row["layer"] for row in rows(what_to_copy(shown, whole=False))]
    assert found == [names[9], names[2], names[20]]


def test_the_whole_table_is_copied_as_it_is_shown() -> None:
    shown = view(marked=frozenset({LAYER}))
    found = rows(what_to_copy(shown, whole=True))
    assert [row["layer"] for row in found] == [
        shown.session.layers.names[row] for row in shown.rows
    ]
    assert next(row for row in found if row["layer"] == BROKEN)["kl_nats_per_token"] == ""
    assert next(row for row in found if row["layer"] == LAYER)["marked"] == "true"


def test_control_characters_of_a_name_do_not_reach_the_clipboard() -> None:
    found = view().session
    name = "evil\tname\x1b[2J"
    row = found.index[LAYER]
    found.layers.names[row] = name
    found.index[name] = row
    (copied,) = rows(what_to_copy(view(found, layer=name), whole=False))
    assert copied["layer"] == r"evil\tname\x1b[2J"


def test_nothing_to_copy_is_said() -> None:
    with pytest.raises(UsageError, match="no layer under the cursor"):
        what_to_copy(view(layer=None), whole=False)
    with pytest.raises(UsageError, match="no layer matches the filter"):
        what_to_copy(view(rows=(), filter="kl>9"), whole=True)
