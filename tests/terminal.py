"""A program in a pseudo-terminal of its own: keys go in, bytes come out, a screen shows them."""

from __future__ import annotations

import fcntl
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pyte

from qtui.views.progress import COUNTED, PHASES

PATIENCE = 150.0
"""Seconds after which what was waited for will not come."""
UP, DOWN, END, HOME = b"\x1b[A", b"\x1b[B", b"\x1b[F", b"\x1b[H"

MODE = re.compile(rb"\x1b\[\?([\d;]+)([hl])")
KITTY = re.compile(rb"\x1b\[[<>=]\d*u")
"""Sequences of the kitty keyboard protocol, which the terminal in memory would print."""


class Chunk(NamedTuple):
    """What one read gave."""

    at: float
    """Seconds, as `time.perf_counter` counts them."""
    data: bytes


class Home(NamedTuple):
    """XDG folders of their own, and the environment that names them."""

    folder: Path
    environment: dict[str, str]

    def engines(self) -> list[psutil.Process]:
        """Engines that were started here and still live."""
        return [each for each in self._processes() if "engine" in each.info["cmdline"][:4]]

    def left(self) -> list[psutil.Process]:
        """All processes that were started here and still live."""
        return list(self._processes())

    def _processes(self) -> Iterator[psutil.Process]:
        for each in psutil.process_iter(["cmdline", "status"]):
            with suppress(psutil.Error):
                alive = each.info["status"] != psutil.STATUS_ZOMBIE and each.info["cmdline"]
                if alive and each.environ().get("XDG_STATE_HOME") == str(self.folder / "state"):
                    yield each

    def write_profile(self, **values: object) -> None:
        """Lay values over the profile ``standard``."""
        lines = ["[standard]", *(f"{key} = {value!r}" for key, value in values.items())]
        path = self.folder / "config" / "qtui" / "profiles.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines).replace("(", "[").replace(")", "]") + "\n")


@contextmanager
def home(**profile: object) -> Iterator[Home]:
    """Folders for one test; whatever still lives in them at its end is killed.

    Args:
        profile: values laid over the profile ``standard``.
    """
    # Short, as the paths of sockets must be.
    folder = Path(tempfile.mkdtemp(prefix="q"))
    names = {"STATE_HOME": "state", "CONFIG_HOME": "config", "CACHE_HOME": "cache"}
    folders = {f"XDG_{name}": folder / each for name, each in names.items()}
    folders["XDG_RUNTIME_DIR"] = folder
    for each in folders.values():
        each.mkdir(exist_ok=True)
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in ("NO_COLOR", "LANG", "LC_ALL", "LC_CTYPE", "COLUMNS", "LINES", "FORCE_COLOR")
        and not key.startswith(("TEXTUAL", "PYTEST", "COV"))
    }
    given = {
        "TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8",
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    where = {key: str(value) for key, value in folders.items()}
    made = Home(folder, {**inherited, **given, **where})
    if profile:
        made.write_profile(**profile)
    try:
        yield made
    finally:
        for process in made.left():
            with suppress(psutil.Error):
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


class Terminal:
    """A running program, the bytes it wrote, and the screen they make.

    Nothing is read but by `read` and what stands on it: whoever does not call them is a line that
    stalls.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        size: tuple[int, int] = (120, 40),
        answers: bool = False,
    ) -> None:
        """
        Args:
            command: the program and its arguments.
            size: columns and lines.
            answers: tell the program that frames may be marked (mode 2026), as most terminals do.
        """
        self.chunks: list[Chunk] = []
        """All that was read, in order."""
        self.modes: set[int] = set()
        """Private modes that are set: 1049 the other screen, 25 a cursor that shows."""
        self.blind = False
        """Bytes are kept, but not drawn: a storm of frames is read as fast as it comes."""
        self.answers = answers
        self._screen = pyte.Screen(*size)
        self._stream = pyte.ByteStream(self._screen)
        self._tail = b""
        self.master, self.slave = os.openpty()
        self.resize(*size)
        self.plain = termios.tcgetattr(self.slave)
        """How the terminal was set before the program came."""
        self.began = time.perf_counter()
        slave = self.slave
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=dict(environment),
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),
        )  # fmt: skip

    # --- what goes in ---------------------------------------------------------------------------

    def press(self, *keys: str | bytes) -> None:
        """Write keys, as a terminal writes them."""
        for key in keys:
            os.write(self.master, key.encode() if isinstance(key, str) else key)

    def resize(self, columns: int, lines: int) -> None:
        """Change the size; the kernel tells the program."""
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)
        if (lines, columns) != (self._screen.lines, self._screen.columns):
            self._screen.resize(lines, columns)

    def clear(self) -> None:
        """Forget what stood on the screen: only what is drawn from here on is seen."""
        self._screen.reset()

    # --- what comes out -------------------------------------------------------------------------

    def read(self, seconds: float = 0.0) -> bytes:
        """All that is there to read; if there is nothing yet, what comes within ``seconds``."""
        got = b""
        while select.select([self.master], [], [], 0.0 if got else seconds)[0]:
            try:
                data = os.read(self.master, 1 << 16)
            except OSError:  # the program has ended, and no one else has the terminal open
                break
            if not data:
                break
            got += data
            self._take(data)
            if len(got) > 1 << 20:
                break
        return got

    def _take(self, data: bytes) -> None:
        self.chunks.append(Chunk(time.perf_counter(), data))
        if self.answers and b"\x1b[?2026$p" in self._tail + data:
            os.write(self.master, b"\x1b[?2026;2$y")
        for codes, way in MODE.findall(self._tail + data):
            numbers = {int(code) for code in codes.split(b";") if code}
            self.modes = self.modes | numbers if way == b"h" else self.modes - numbers
        # A sequence may be cut in two by the end of a read.
        self._tail = data[-12:] if b"\x1b" in data[-12:] else b""
        if not self.blind:
            self._stream.feed(KITTY.sub(b"", data))

    @property
    def screen(self) -> list[str]:
        """The lines that stand on the screen."""
        return list(self._screen.display)

    @property
    def picture(self) -> pyte.Screen:
        """The terminal in memory itself."""
        return self._screen

    @property
    def output(self) -> bytes:
        """All bytes that were written so far."""
        return b"".join(chunk.data for chunk in self.chunks)

    def until(
        self, look: Callable[[list[str]], object], seconds: float = PATIENCE, what: str = ""
    ) -> None:
        """Read until the screen looks so.

        Raises:
            AssertionError: with the screen, if it does not in time, or the program ends first.
        """
        deadline = time.monotonic() + seconds
        while not look(self.screen):
            ended = self.process.poll() is not None
            if not self.read(0.1) and (ended or time.monotonic() > deadline):
                name = what or getattr(look, "__name__", "")
                how = f"ended with {self.process.returncode}" if ended else f"{seconds:.0f} s"
                shown = "\n".join(line.rstrip() for line in self.screen)
                raise AssertionError(f"never on the screen ({how}): {name}\n{shown}")

    def waiting(self) -> int:
        """Bytes written and not read yet."""
        return int(struct.unpack("i", fcntl.ioctl(self.master, termios.FIONREAD, b"\0\0\0\0"))[0])

    # --- how it ends ----------------------------------------------------------------------------

    def settings(self) -> list[object]:
        """How the terminal is set: echo, lines, signals."""
        return list(termios.tcgetattr(self.slave))

    def ended(self, seconds: float = PATIENCE) -> int:
        """Read until the program has ended, and return its exit code.

        Raises:
            AssertionError: if it does not in time.
        """
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it did not end in {seconds:.0f} s"
            self.read(0.05)
        self.read()
        return self.process.returncode

    def hang_up(self) -> None:
        """Close the terminal, as a line that breaks."""
        for each in (self.slave, self.master):
            with suppress(OSError):
                os.close(each)
        self.slave = self.master = -1

    def close(self) -> None:
        """Kill the program if it still runs."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.hang_up()


def wait_for(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait for what stands on no screen.

    Raises:
        AssertionError: if it does not come in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in {seconds:.0f} s: {what}"
        time.sleep(0.02)


@contextmanager
def qtui(
    where: Home,
    *arguments: str,
    size: tuple[int, int] = (120, 40),
    answers: bool = False,
    module: str = "qtui",
    **environment: str,
) -> Iterator[Terminal]:
    """``python -m qtui ARGUMENTS`` in a terminal; killed at the end if it still runs.

    Args:
        module: another module to run in its place.
        environment: variables laid over the home's own; an empty one is left out.
    """
    given = {**where.environment, **environment}
    terminal = Terminal(
        [sys.executable, "-m", module, *arguments],
        {key: value for key, value in given.items() if value},
        size,
        answers,
    )
    try:
        yield terminal
    finally:
        terminal.close()


# --- what a screen of the workbench looks like ---------------------------------------------------


def whole(screen: list[str]) -> bool:
    """The title, the table with its head and rows, and the key bar."""
    return (
        any("demo" in line for line in screen[:2])
        and any("layer" in line and "KL" in line for line in screen)
        and any("_proj" in line for line in screen)
        and any("quit" in line and "help" in line for line in screen[-2:])
    )


def triage_row(screen: list[str]) -> bool:
    """A row of the table that has its weight error."""
    return any(re.search(r"(proj|lm_head|embed_tokens)\b.*\d%", line) for line in screen)


def sensitivity(screen: list[str]) -> bool:
    """A row of the table that has its change of perplexity."""
    return any(re.search(r"(proj|lm_head|embed).*[+-] ?\d*\.\d+ ± ", line) for line in screen)


def progress(screen: list[str]) -> tuple[int, int] | None:
    """Layers done and all layers of the sweep that runs, as the head of the screen tells them."""
    for line in screen[:4]:
        counted = re.match(r" sweep\b.* (\d+)/(\d+)\b", line)
        if counted and not any(PHASES[phase] in line for phase in (*COUNTED, "estimating")):
            return int(counted[1]), int(counted[2])
    return None


def cursor_line(screen: list[str]) -> str:
    """The row of the table under the cursor; empty where there is none."""
    return next((line for line in screen if line.startswith("▌")), "")
