"""The log of a session's engine, and its last lines for error messages."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from engine.store.paths import session_folder

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LOG_LINES = 12
"""Lines of the log to show when an engine exited."""
STARTS = "engine starts"
"""Marks the start of an engine in its log."""
MAX_LOG = 4 << 20


def log_file(name: str) -> Path:
    """The log of a session's engine."""
    return session_folder(name) / "engine.log"


def log_tail(name: str) -> list[str]:
    """The last lines that a session's newest engine logged; empty where there is no log."""
    try:
        lines = log_file(name).read_text(errors="replace").splitlines()
    except OSError:
        return []
    # Skip lines of earlier engines.
    starts = [at for at, line in enumerate(lines) if STARTS in line]
    return lines[starts[-1] if starts else 0 :][-LOG_LINES:]


def log_to_file(name: str) -> None:
    """Make an engine in this process log to the session's file, as one in its own process does.

    Sets up the logger ``engine`` for the whole process.
    """
    logger = logging.getLogger("engine")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    handler = _LogFile(log_file(name), delay=True)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    logger.addHandler(handler)
    logger.propagate = False


class _LogFile(logging.FileHandler):
    def emit(self, record: logging.LogRecord) -> None:
        # The file is opened by its first line: a folder that is gone must not end a measurement.
        with suppress(OSError):
            super().emit(record)
