"""Copying: to the terminal's clipboard by OSC 52, and to a file that is always there.

OSC 52 has no reply, so qtui can only report what it sent. Three ways are used at once, since each
is harmless where it has no effect:

- the plain sequence, for terminals, and for tmux with ``set-clipboard on``;
- inside tmux, ``tmux load-buffer -w`` on the file: tmux ignores the plain sequence as it comes
  (``set-clipboard external``), and sets the clipboard itself all the same; ``prefix ]`` pastes too;
- inside tmux and GNU screen, the sequence wrapped to be passed through to the terminal outside
  (tmux: with ``allow-passthrough on``).

Widely used terminals drop a sequence of more than 100,000 bytes, which holds 74,994 bytes of text:
a longer text goes to the file only, and qtui says so.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from engine.errors import UsageError
from engine.store.files import write_whole
from qtui.saved.forms import as_tsv
from qtui.saved.layers import layers
from qtui.saved.tables import why_not
from qtui.saved.view import View
from qtui.textual_internals import driver_of, output_is_full
from qtui.views.text import printable

MOST_BYTES = 74_994
"""Bytes of text that a clipboard sequence of 100,000 bytes holds."""
SCREEN_PIECE = 252
"""Bytes of one control string that GNU screen passes on; it drops longer ones."""
FILE = "copied.txt"
ESCAPE, BELL, END = "\x1b", "\a", "\x1b\\"


class Terminal(Protocol):
    """Of a Textual app, what copying needs."""

    def copy_to_clipboard(self, text: str) -> None:
        """Write the plain OSC 52 sequence."""


class Copied(msgspec.Struct, frozen=True):
    """The result of a copy."""

    path: Path | None
    """The file that holds the text; None where it could not be written."""
    how: str
    """A sentence for a person."""
    sent: bool
    """Whether it was sent to the terminal."""


def copy(app: Terminal, text: str, folder: Path, environ: Mapping[str, str] = os.environ) -> Copied:
    """Copy a text; nothing is raised, whatever the terminal and the disk are like.

    Args:
        app: the running app.
        text: what to copy.
        folder: the session's state folder.
        environ: where ``TMUX``, ``STY`` and ``TERM`` are looked up.
    """
    count = f"{len(text):,} character{'s' if len(text) != 1 else ''}"
    path, trouble = _to_file(text, folder)
    size = len(text.encode(errors="replace"))
    dumb = environ.get("TERM") == "dumb"
    sent = False
    if not dumb and size <= MOST_BYTES:
        sent = _to_terminal(app, text, path, environ)
    where = [] if path is None else [printable(str(path))]
    if sent:
        where.insert(0, "the clipboard")
    if not where:
        return Copied(None, f"not copied: {trouble}", False)
    said = f"copied {count} to {' and '.join(where)}"
    if size > MOST_BYTES:
        said += f", not to the clipboard: terminals accept {MOST_BYTES:,} bytes"
    if trouble:
        said += f"; {trouble}"
    return Copied(path, said, sent)


def what_to_copy(view: View, whole: bool) -> str:
    """Rows as tab-separated figures in full precision, below the names of their columns.

    Args:
        view: what is shown.
        whole: every row that is shown; otherwise the marked ones, else the one under the cursor.

    Raises:
        UsageError: there is no such row; the message says so.
    """
    session = view.session
    if whole:
        if reason := why_not("table", view):
            raise UsageError(reason)
        return as_tsv(layers(view))
    shown = set(view.rows)
    if view.marked:
        # Marked rows that a filter hides are copied too: marks outlast filters.
        rows = [row for row in view.rows if session.layers.names[row] in view.marked]
        rows += [
            row for row, name in enumerate(session.layers.names)
            if name in view.marked and row not in shown
        ]  # fmt: skip
    else:
        row = None if view.layer is None else session.row(view.layer)
        rows = [] if row is None else [row]
    if not rows:
        raise UsageError("there is no layer under the cursor: nothing to copy")
    return as_tsv(layers(msgspec.structs.replace(view, rows=tuple(rows))))


def sequences(text: str, environ: Mapping[str, str]) -> list[str]:
    """The clipboard sequence as multiplexers around us pass it on; none where there are none."""
    encoded = base64.b64encode(text.encode(errors="replace")).decode()
    plain = f"{ESCAPE}]52;c;{encoded}{BELL}"
    wrapped = []
    if environ.get("TMUX"):
        wrapped.append(f"{ESCAPE}Ptmux;{plain.replace(ESCAPE, ESCAPE * 2)}{END}")
    elif environ.get("STY"):
        # Screen passes short control strings on; the terminal outside puts them together.
        pieces = [plain[at : at + SCREEN_PIECE] for at in range(0, len(plain), SCREEN_PIECE)]
        wrapped.append("".join(f"{ESCAPE}P{piece}{END}" for piece in pieces))
    return wrapped


def _to_file(text: str, folder: Path) -> tuple[Path | None, str]:
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode(errors="replace"))
    except OSError as error:
        return None, f"{printable(str(path))} cannot be written: {error.strerror or error}"
    return path, ""


def _to_terminal(app: Terminal, text: str, path: Path | None, environ: Mapping[str, str]) -> bool:
    driver = driver_of(app)
    if output_is_full(app):
        return False
    try:
        app.copy_to_clipboard(text.encode(errors="replace").decode())
        for sequence in sequences(text, environ):
            if driver is not None:
                driver.write(sequence)
    except (AssertionError, OSError, ValueError):
        return False  # the terminal is gone, or has not been set up
    if environ.get("TMUX") and path is not None:
        _to_tmux(path, environ)
    return True


def _to_tmux(path: Path, environ: Mapping[str, str]) -> None:
    """Let tmux read the file and set the clipboard, without waiting for it."""
    program = shutil.which("tmux", path=environ.get("PATH"))
    if program is None:
        return
    with contextlib.suppress(OSError):
        subprocess.Popen(
            [program, "load-buffer", "-w", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=dict(environ),
        )
