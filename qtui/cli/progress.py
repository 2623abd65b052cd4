"""Progress on stderr: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from typing import TextIO

from engine.report.wording import size
from qtui.views.text import PLAIN, UNICODE, fit, printable

EVERY = 5.0
"""Seconds between two lines where there is no terminal."""
FRAME = 0.1
"""Seconds between two repaints of the bar."""
BAR = 30
"""Cells of the bar."""


class Meter:
    """The progress line, with messages printed above it."""

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            stream: stderr.
            now: a clock that only goes forward, in seconds.
        """
        self._stream, self._now = stream, now
        self._live = stream.isatty()
        unicode = (getattr(stream, "encoding", None) or "").lower().replace("-", "") == "utf8"
        self._glyphs = UNICODE if unicode else PLAIN
        self._shown = -math.inf
        self._last = ""
        self._painted = False

    def show(
        self,
        what: str,
        done: float,
        total: int,
        left: str = "",
        detail: str = "",
        *,
        in_bytes: bool = False,
    ) -> None:
        """Show progress, if it is time to.

        Args:
            what: the job.
            done: steps that are over.
            total: steps in all.
            left: the time left, in words.
            detail: what it is doing.
            in_bytes: whether steps are bytes.
        """
        now = self._now()
        if now - self._shown < (FRAME if self._live else EVERY):
            return
        self._shown = now
        steps = f"{math.floor(done)}/{total}" if total > 1 else ""
        if in_bytes:
            steps = f"{size(done)} of {size(total)}"
        bar = self._bar(done / total) if self._live and total > 1 else ""
        words = (printable(what), bar, steps, left, printable(detail))
        line = "  ".join(word for word in words if word)
        if self._live:
            width = max(20, shutil.get_terminal_size().columns - 1)
            self._write(f"\r\x1b[K{fit(line, width, self._glyphs).rstrip()}")
            self._painted = True
        elif line != self._last:
            self._write(f"{line}\n")
            self._last = line

    def say(self, sentence: str) -> None:
        """Print a message above the bar."""
        self.clear()
        self._write(f"{printable(sentence)}\n")

    def clear(self) -> None:
        """Remove the bar."""
        if self._painted:
            self._write("\r\x1b[K")
            self._painted = False

    def _bar(self, share: float) -> str:
        full = round(min(max(share, 0.0), 1.0) * BAR)
        return self._glyphs.bar * full + (" " if self._glyphs.ascii else "─") * (BAR - full)

    def _write(self, text: str) -> None:
        put(self._stream, text)


def put(stream: TextIO, text: str) -> None:
    """Write text to a stream, escaping what its encoding lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()
