"""Terminal input without stray answers, and signals that end the interface."""

from __future__ import annotations

import os
import re
import selectors
import signal
from codecs import getincrementaldecoder
from collections.abc import Callable
from types import FrameType

from textual.drivers.linux_driver import LinuxDriver

from qtui.textual_internals import BRACKETED_PASTE_END, BRACKETED_PASTE_START, input_parser

REPLIES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC: colours, titles, the clipboard
    r"|\x1b[P_^X][^\x1b]*\x1b\\"  # DCS, APC, PM, SOS
    r"|\x1b\[\?(?!(?:2026|2048);\d\$y)[\d;:]*[ -/]*[@-~]"  # modes and attributes, but two
    r"|\x1b\[[>=][\d;:]*[ -/]*[@-~]"
    r"|\x1b\[[\d;:]*(?:[ -/]+[@-~]|[cnx])"  # attributes, status
)
"""Whole answers to queries that were not ours. Textual would take them for keys."""


class Input:
    """What the terminal sends, without what is no key."""

    def __init__(self) -> None:
        self._decode = getincrementaldecoder("utf-8")("ignore").decode
        self._pasting = False
        self._kept = ""

    def clean(self, data: bytes) -> str:
        """The text in ``data``; nothing inside a paste can be taken for a key."""
        text = self._kept + self._decode(data)
        self._kept = ""
        done = ""
        while text:
            marker = BRACKETED_PASTE_END if self._pasting else BRACKETED_PASTE_START
            before, found, text = text.partition(marker)
            cut = 0 if found else _begun(before, marker)
            if cut >= (1 if self._pasting else 3):  # shorter, it may be a key that was pressed
                before, self._kept = before[:-cut], before[-cut:]
            done += before.replace("\x1b", "") if self._pasting else REPLIES.sub("", before)
            done += found
            self._pasting ^= bool(found)
        return done


def _begun(text: str, marker: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``marker``."""
    return next((n for n in range(len(marker) - 1, 0, -1) if text.endswith(marker[:n])), 0)


class TerminalDriver(LinuxDriver):
    """Textual's driver, robust against other encodings, stray answers and a hang-up."""

    def run_input_thread(self) -> None:
        """Pass on keys until the application or the terminal ends."""
        parser, given = input_parser(self), Input()
        with selectors.SelectSelector() as selector:
            selector.register(self.fileno, selectors.EVENT_READ)
            while not self.exit_event.is_set():
                if selector.select(0.1):
                    try:
                        data = os.read(self.fileno, 4096)
                    except OSError:
                        data = b""
                    if not data:
                        return  # the terminal is gone: SIGHUP ends the app
                    if text := given.clean(data):  # no text at all would end the parser
                        for message in parser.feed(text):
                            self.process_message(message)
                for message in parser.tick():
                    self.process_message(message)


def end_on_signals(leave: Callable[[int], None], give_up: Callable[[], None], grace: float) -> None:
    """End on SIGTERM and SIGHUP as on the quit key.

    Args:
        leave: begins to leave, with the exit code; called on the main thread, between two steps of
            whatever runs there.
        give_up: called last where leaving takes longer than ``grace`` seconds: a terminal that is
            gone accepts no bytes, so a write to it blocks.
        grace: seconds.
    """

    def end(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, grace)
        leave(128 + number)

    def late(number: int, frame: FrameType | None) -> None:
        give_up()
        os._exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGALRM, late)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
