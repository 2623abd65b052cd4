"""The interface as a terminal sees it: a real process, a real pseudo-terminal, a real engine."""

from __future__ import annotations

import random
import re
import signal
import sqlite3
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests import terminal as t
from tests import tiny
from tests.terminal import Home, Terminal, wait_for

FEW_FORMATS = {"formats": ("int4-g128",), "estimate_formats": ()}
QUICK = {"tokens": 1024, "seq_len": 128, "batch_tokens": 512, **FEW_FORMATS}
LONG = {**QUICK, "tokens": 2048, "sweep_formats": tuple(f"int{bits}-g128" for bits in range(2, 8))}
"""A sweep that outlasts the tests it runs under."""
COLOUR = re.compile(rb"\x1b\[[\d;]*m")
Shared = Callable[..., AbstractContextManager[Terminal]]
CURSOR_SHOWS, OTHER_SCREEN, MOUSE, PASTE = 25, 1049, 1000, 2004


EFFECTS = " WHERE instr(data, CAST('Sensitivity' AS BLOB))"
"""Of facts, those that the progress of a sweep counts."""


def known(home: Home, only: str = "") -> int:
    """Facts committed so far."""
    path = home.folder / "state" / "qtui" / "facts.sqlite"
    if not path.exists():
        return 0
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as db:
        try:
            return int(db.execute(f"SELECT COUNT(*) FROM facts{only}").fetchone()[0])
        except sqlite3.OperationalError:  # the table is not there yet
            return 0


def coloured(output: bytes) -> bool:
    """Whether any sequence sets a colour, of the foreground or the background."""
    for sequence in COLOUR.findall(output):
        for code in sequence[2:-1].split(b";"):
            number = int(code or 0)
            if 30 <= number <= 38 or 40 <= number <= 48 or 90 <= number <= 107:
                return True
    return False


def restored(terminal: Terminal) -> bool:
    """Whether the terminal is as it was before: screen, cursor, mouse, paste, echo."""
    set_still = terminal.modes & {OTHER_SCREEN, MOUSE, PASTE, 1003, 1006, 1004}
    return (
        not set_still and CURSOR_SHOWS in terminal.modes and terminal.settings() == terminal.plain
    )


def too_small(screen: list[str]) -> bool:
    """Nothing but the wish for a larger window."""
    text = "\n".join(screen)
    return "qtui needs" in text and "proj" not in text and "quit" not in text


def help_shown(screen: list[str]) -> bool:
    """The list of keys."""
    return any("Page up" in line for line in screen)


def resumed(screen: list[str]) -> int:
    """How many results of a sweep that ended were known before it."""
    found = re.search(r"sweep \S+: done, .*?(\d+) saved earlier", "\n".join(screen))
    return int(found[1]) if found else 0


def in_first_row(screen: list[str]) -> bool:
    """Whether the cursor is right below the table's head, whichever layer is there just now."""
    heads = [at for at, line in enumerate(screen) if "layer" in line and "KL" in line]
    return any(t.cursor_line(screen[at + 1 : at + 2]) for at in heads)


def works(terminal: Terminal) -> None:
    """Keys are heard: the cursor goes to the other end of the table and back."""
    terminal.press(t.HOME)
    terminal.until(in_first_row, what="the cursor in the first row")
    terminal.press(t.END)
    terminal.until(lambda s: t.cursor_line(s) and not in_first_row(s), what="the last row")
    terminal.press(t.HOME)
    terminal.until(in_first_row, what="the first row again")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of thin layers, but of so many that their sweep outlasts the tests under it."""
    return tiny.build("llama", tmp_path_factory.mktemp("deep") / "deep-demo", num_hidden_layers=24)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that is swept in a few seconds."""
    return tiny.build("llama", tmp_path_factory.mktemp("small") / "small-demo", num_hidden_layers=4)


@pytest.fixture(scope="module")
def place() -> Iterator[Home]:
    with t.home(**LONG) as home:
        yield home


@pytest.fixture(scope="module")
def running(place: Home, deep: Path, prose: Path) -> Iterator[Terminal]:
    """The interface in the middle of a sweep; shared by what leaves it alive."""
    with t.qtui(place, str(deep), "--text", str(prose)) as terminal:
        terminal.until(t.progress, what="a sweep")
        terminal.until(lambda s: (t.progress(s) or (0, 0))[0] > 1, what="a sweep that goes on")
        yield terminal
        terminal.press("Q")
        assert terminal.ended() == 0
        assert restored(terminal)
    wait_for(lambda: not place.left(), "the engine ends with the interface")


@pytest.fixture
def shown(running: Terminal) -> Terminal:
    """The interface of 120 × 40, whole, with nothing left to read."""
    running.blind = False
    running.resize(120, 40)
    running.until(t.whole)
    assert running.process.poll() is None
    return running


@pytest.fixture
def shared(running: Terminal, place: Home, deep: Path, prose: Path) -> Shared:
    """Another interface on the engine of the one that runs."""
    return partial(t.qtui, place, str(deep), "--text", str(prose))


# --- how it begins --------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["stdin", "stdout"])
def test_without_a_terminal_it_names_the_commands_that_need_none(end: str) -> None:
    with t.home() as home:
        piped = {"stdin": subprocess.DEVNULL} if end == "stdin" else {"stdout": subprocess.PIPE}
        terminal = Terminal(["sleep", "30"], home.environment)
        try:
            ends = {"stdin": terminal.slave, "stdout": terminal.slave, **piped}
            done = subprocess.run(
                [sys.executable, "-m", "qtui", "demo"], env=home.environment, text=True,
                stderr=subprocess.PIPE, check=False, timeout=60, **ends,
            )  # fmt: skip
            assert done.returncode == 2
            assert "qtui sweep demo" in done.stderr
            assert not done.stdout
            assert not terminal.read(0.1)
            assert not home.engines()
        finally:
            terminal.close()


def test_a_window_that_begins_tiny_may_grow() -> None:
    with t.home(**QUICK) as home, t.qtui(home, "demo", size=(40, 10)) as terminal:
        terminal.until(too_small)
        terminal.resize(120, 40)
        terminal.until(t.whole)
        works(terminal)
        terminal.press("Q")
        assert terminal.ended() == 0
        wait_for(lambda: not home.left(), "the engine ends with the interface")


# --- how it ends ---------------------------------------------------------------------------------


def test_an_engine_that_is_killed_is_told_of_and_r_starts_another(small: Path, prose: Path) -> None:
    with t.home(**QUICK) as home, t.qtui(home, str(small), "--text", str(prose)) as terminal:
        terminal.until(t.sensitivity)
        (engine,) = home.engines()
        engine.kill()
        terminal.until(
            lambda s: any("engine" in x and ("ended" in x or "killed by signal" in x) for x in s)
        )
        shown = "\n".join(terminal.screen)
        assert "engine.log" in shown
        assert "restarts it" in shown
        facts = known(home)
        assert facts > 0
        terminal.press("r")
        with suppress(AssertionError):
            # What there is to read is read, whether or not it is the engine that says it.
            wait_for(lambda: (terminal.read(0.05), home.engines())[1], "another engine")
        assert home.engines(), "\n".join(terminal.screen)
        assert home.engines()[0].pid != engine.pid
        terminal.until(lambda s: not any("engine.log" in line for line in s), what="no banner")
        terminal.until(lambda s: t.progress(s) or t.sensitivity(s), what="the sweep goes on")
        assert known(home) >= facts

        # A person's session manager ends it: the engine goes on, and ends when it is told to.
        terminal.process.send_signal(signal.SIGTERM)
        terminal.ended(10)
        assert restored(terminal)
        assert b"Traceback" not in terminal.output
        for each in home.engines():
            each.terminate()
        wait_for(lambda: not home.left(), "the engine ends in good order", 10)


# --- while a sweep goes on -----------------------------------------------------------------------


def test_a_storm_of_sizes_leaves_a_whole_screen(shown: Terminal) -> None:
    chance = random.Random(3)
    mark = len(shown.chunks)
    shown.blind = True
    for at in range(200):
        shown.resize(chance.randint(1, 250), chance.randint(1, 80))
        shown.read(0.02 if at % 5 == 0 else 0.0)
    shown.resize(1, 1)
    shown.read(0.2)
    shown.blind = False
    shown.clear()
    shown.resize(120, 40)
    shown.until(t.whole)
    works(shown)
    written = b"".join(chunk.data for chunk in shown.chunks[mark:])
    assert b"Traceback" not in written


def test_a_window_too_small_is_told_so_and_the_screen_comes_back(shown: Terminal) -> None:
    for size in ((59, 24), (80, 17), (20, 5)):
        shown.resize(*size)
        shown.until(too_small, what=f"the wish, and nothing else, at {size}")
    shown.resize(60, 18)
    shown.until(lambda s: any("_proj" in line for line in s), what="the table at 60 × 18")
    shown.resize(120, 40)
    shown.until(t.whole)


def test_bytes_that_are_no_keys_change_nothing(shown: Terminal) -> None:
    at = shown.screen[5].index("holds")
    holds = shown.screen[6][at : at + 16]
    assert holds.startswith("fp32")
    sequences = [
        b"\xff\xfe\x80\xc3", b"\x1b[?9999;9999$y", b"\x1b[?62;1;4c", b"\x1b[>41;351;0c",
        b"\x1b[0n",
        b"\x1b[<0;999;999M\x1b[<0;999;999m", b"\x1b[<64;1;1M\x1b[<65;500;500M", b"\x1b[<35;0;0M",
        b"\x1b[<-1;-1;-1M", b"\x1b[M\xff\xff\xff", b"\x1b]11;rgb:0000/0000/0000\x1b\\",
        b"\x1bP1$r0m\x1b\\", b"\x1b[I\x1b[O\x1b[I", b"\x1b[48;40;120;800;1200t",
        b"\x1b[200~" + b"q 4 [b]x[/b] \x1b[31m\r\n" * 200 + b"\x1b[201~", b"\x00\x01\x1d\x1e\x1f",
    ]  # fmt: skip
    for sequence in sequences:
        shown.press(sequence)
        shown.read(0.02)
    works(shown)
    shown.until(t.whole)
    assert shown.screen[6][at : at + 16] == holds


def test_to_the_shell_and_back(shown: Terminal, place: Home) -> None:
    shown.press(b"\x1a")  # ctrl+z
    process = psutil.Process(shown.process.pid)

    def stopped() -> bool:
        shown.read(0.05)
        return process.status() == psutil.STATUS_STOPPED

    wait_for(stopped, "the process stops")
    shown.read(0.2)
    assert restored(shown)
    before = known(place)
    wait_for(lambda: known(place) >= before + 2, "the sweep goes on meanwhile")
    shown.clear()
    process.send_signal(signal.SIGCONT)
    shown.until(t.whole)
    assert OTHER_SCREEN in shown.modes
    assert CURSOR_SHOWS not in shown.modes
    assert not shown.settings()[3] & termios.ECHO  # type: ignore[operator]
    works(shown)


def test_a_line_that_stalls_stops_no_sweep_and_costs_no_memory(
    shown: Terminal, place: Home
) -> None:
    process = psutil.Process(shown.process.pid)
    done = t.progress(shown.screen)
    assert done is not None
    begun = known(place, EFFECTS)
    waiting = [-1]

    def full() -> bool:
        """Nothing more fits into the line, however often a key asks for another picture."""
        shown.press(t.END, t.HOME)
        waiting.append(shown.waiting())
        return waiting[-1] > 1000 and len(waiting) > 20 and len(set(waiting[-20:])) == 1

    wait_for(full, "the line is full")
    memory, before = process.memory_info().rss, known(place, EFFECTS)
    wait_for(lambda: known(place, EFFECTS) >= before + 20, "the engine goes on measuring")
    assert process.memory_info().rss - memory < 8 << 20
    measured = done[0] + known(place, EFFECTS) - begun

    # The newest state, not the pictures of every moment in between.
    shown.clear()
    shown.resize(121, 40)
    shown.until(t.whole)
    shown.until(
        lambda s: (t.progress(s) or (measured, 0))[0] >= measured - 2, 30, what="where it is now"
    )
    works(shown)


# --- terminals of other kinds --------------------------------------------------------------------
# They attach to the engine of the one above.


def test_no_color_is_a_screen_without_colours(shared: Shared) -> None:
    with shared(NO_COLOR="1") as terminal:
        terminal.until(lambda s: any("_proj" in line for line in s), what="the table")
        terminal.press(t.DOWN, " ", t.DOWN, "?")
        terminal.until(help_shown)
        terminal.press("?")
        terminal.until(lambda s: not help_shown(s), what="the help is closed")
        assert not coloured(terminal.output)
        terminal.press("q")
        terminal.ended()


@pytest.mark.parametrize(
    "environment",
    [{"TERM": "linux"}, {"TERM": "dumb"}, {"LANG": "C"}, {"LC_ALL": "POSIX"}],
    ids=lambda given: "=".join(*given.items()),
)
def test_bare_terminals_are_sent_ascii_alone(environment: dict[str, str], shared: Shared) -> None:
    with shared(**environment) as terminal:
        terminal.until(lambda s: any("_proj" in line for line in s), what="the table")
        terminal.press(t.DOWN, " ", "4", t.DOWN, "?")
        terminal.until(help_shown)
        terminal.press("?")
        terminal.until(lambda s: not help_shown(s), what="the help is closed")
        terminal.resize(80, 24)
        terminal.until(lambda s: any("_proj" in line for line in s[:20]), what="80 × 24")
        terminal.read(0.3)
        strange = {chr(byte) for byte in terminal.output if byte >= 128}
        assert not strange, terminal.output[:2000]
        terminal.press("q")
        terminal.ended()


def test_colours_are_sent_where_nothing_speaks_against_them(shared: Shared) -> None:
    with shared() as terminal:
        terminal.until(lambda s: any("_proj" in line for line in s), what="the table")
        assert coloured(terminal.output)
        assert any(byte >= 128 for byte in terminal.output)
        terminal.press("q")
        terminal.ended()
