"""From the command to the first frame, the first triage row, the first sensitivity.

``qtui demo`` in a real pseudo-terminal of 120 × 40, everything measured anew, five times. What
counts is what stands on the screen: the bytes are fed to a terminal in memory.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import statistics
import struct
import sys
import tempfile
import termios
import time
from contextlib import suppress
from pathlib import Path

import pyte

COLUMNS, LINES, RUNS, PATIENCE = 120, 40, 5, 90.0


def triage_row(screen: list[str]) -> bool:
    """A row of the table that has its weight error."""
    return any(re.search(r"(proj|lm_head|embed_tokens)\b.*\d%", line) for line in screen)


def sensitivity(screen: list[str]) -> bool:
    """A row of the table that has its change of perplexity."""
    return any(re.search(r"(proj|lm_head|embed).*[+-] ?\d*\.\d+ ± ", line) for line in screen)


LOOKS = {
    "first frame": lambda screen: any(line.strip() for line in screen),
    "table of layers": lambda screen: any("_proj" in line for line in screen),
    "first triage row": triage_row,
    "first sensitivity": sensitivity,
}


def once(arguments: list[str]) -> dict[str, float]:
    """Seconds from the start of the process to each look."""
    folder = Path(tempfile.mkdtemp(prefix="qb"))
    environment = {
        **os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor",
        "XDG_STATE_HOME": str(folder), "XDG_RUNTIME_DIR": str(folder),
    }  # fmt: skip
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    begun = time.perf_counter()
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-m", "qtui", *arguments], environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    found: dict[str, float] = {}
    try:
        while len(found) < len(LOOKS) and time.perf_counter() - begun < PATIENCE:
            if not select.select([terminal], [], [], 1.0)[0]:
                continue
            data = os.read(terminal, 1 << 16)
            now = time.perf_counter() - begun
            stream.feed(data)
            for name, look in LOOKS.items():
                if name not in found and look(screen.display):
                    found[name] = now
        os.write(terminal, b"q")
        while select.select([terminal], [], [], 10.0)[0]:
            if not os.read(terminal, 1 << 16):
                break
    except OSError:  # the terminal is gone: the process has ended
        pass
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)
        shutil.rmtree(folder, ignore_errors=True)
    return found


def test_start() -> None:
    runs = [once(["demo"]) for _ in range(RUNS + 1)][1:]
    print()
    for name in LOOKS:
        seconds = [run.get(name, float("nan")) for run in runs]
        print(
            f"{name:20} median {statistics.median(seconds):5.2f} s"
            f"   {min(seconds):5.2f} to {max(seconds):5.2f}"
        )
    assert all(len(run) == len(LOOKS) for run in runs), "not all of it was seen"
