"""An engine outlives its terminals: closed, killed, hung up, attached again, watched, stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest

from tests import terminal as t
from tests import tiny
from tests.faults.table import put
from tests.terminal import Home, Terminal, wait_for
from tests.test_pty import LONG, known


def qtui(home: Home, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qtui", *arguments], env=home.environment, text=True,
        capture_output=True, check=False, timeout=60,
    )  # fmt: skip


def listed(home: Home) -> dict[str, object]:
    """The only session, as ``qtui sessions --json -`` has it."""
    done = qtui(home, "sessions", "--json", "-")
    assert done.returncode == 0, done.stderr
    (only,) = json.loads(done.stdout)["sessions"]
    return dict(only)


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with t.home(**LONG) as made:
        yield made


@pytest.fixture(scope="module")
def engine(home: Home, prose: Path, tmp_path_factory: pytest.TempPathFactory) -> psutil.Process:
    """An engine in the middle of a long sweep, whose terminal hung up."""
    deep = tiny.build("llama", tmp_path_factory.mktemp("deep") / "deep-demo", num_hidden_layers=24)
    with t.qtui(home, str(deep), "--text", str(prose)) as terminal:
        terminal.until(lambda s: (t.progress(s) or (0, 0))[0] >= 2, what="a sweep that goes on")
        (process,) = home.engines()
        terminal.hang_up()
        terminal.process.wait(10)
    return process


def measuring(home: Home, process: psutil.Process) -> None:
    """The engine lives, and goes on."""
    before = known(home)
    wait_for(lambda: known(home) > before, "the engine goes on measuring")
    assert process.is_running()


def attached(home: Home, *more: str) -> AbstractContextManager[Terminal]:
    return t.qtui(home, "attach", *more)


def test_an_engine_whose_line_broke_goes_on_and_is_listed(
    home: Home, engine: psutil.Process
) -> None:
    measuring(home, engine)
    found = listed(home)
    assert found["state"] == "working"
    assert found["pid"] == engine.pid
    assert str(found["job"]["title"]).startswith("sweep")  # type: ignore[index]
    assert int(found["memory_bytes"]) > 50 << 20  # type: ignore[call-overload]
    shown = qtui(home, "sessions").stdout
    assert str(found["name"]) in shown
    assert "working" in shown


def test_attaching_shows_the_whole_picture_and_leaving_leaves_it(
    home: Home, engine: psutil.Process
) -> None:
    with attached(home) as terminal:
        terminal.until(lambda s: (t.progress(s) or (0, 0))[0] >= 2 and t.whole(s))
        terminal.press("q")
        assert terminal.ended() == 0
    said = terminal.output.decode(errors="replace")
    assert "the engine goes on with" in said
    assert "qtui attach" in said
    measuring(home, engine)


WAYS: dict[str, Callable[[Terminal], None]] = {
    "killed": lambda terminal: terminal.process.kill(),
    "closed": lambda terminal: terminal.hang_up(),
    "SIGHUP": lambda terminal: terminal.process.send_signal(signal.SIGHUP),
}
"""How a terminal ends without saying so."""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("times", [1, pytest.param(17, marks=pytest.mark.soak)])
def test_a_terminal_that_ends_takes_nothing_with_it(
    times: int, home: Home, engine: psutil.Process
) -> None:
    for how in [*WAYS] * times:
        with attached(home) as terminal:
            terminal.until(t.whole, what=f"the whole picture, before it is {how}")
            WAYS[how](terminal)
            if how == "SIGHUP":
                terminal.ended()  # it restores the screen, which has to be read
            terminal.process.wait(20)
        measuring(home, engine)
    if times > 1:
        put("the terminal is killed", f"{times * len(WAYS)} of {times * len(WAYS)}")


def test_two_terminals_agree_and_one_that_only_looks_changes_nothing(
    home: Home, engine: psutil.Process
) -> None:
    with attached(home) as one, attached(home, "--read-only") as two:
        one.until(t.whole)
        two.until(t.whole)
        two.press("4")
        two.until(lambda s: any("only looks" in line for line in s), what="a refusal")
        one.press("4")
        for each in (one, two):
            each.until(lambda s: any("● 1 changed" in line for line in s[:3]), what="the change")
        two.press("Q")
        assert two.ended() == 0
        one.press("u", "q")
        assert one.ended() == 0
    measuring(home, engine)


def test_a_log_of_what_it_does(home: Home, engine: psutil.Process) -> None:
    command = [sys.executable, "-m", "qtui", "attach", "--watch", "--every", "0.2"]
    with subprocess.Popen(
        command,
        env={**home.environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        lines = [watching.stdout.readline() for _ in range(4)]
        watching.terminate()
    for line in lines[1:]:
        assert line[:2] == "20"
        assert "sweep" in line
        assert "PPL" in line


def test_who_names_no_engine_that_runs_is_told_which_do(home: Home, engine: psutil.Process) -> None:
    name = str(listed(home)["name"])
    for command in ("attach", "stop"):
        done = qtui(home, command, "nothing")
        assert done.returncode == 2
        assert name in done.stderr
        assert "Traceback" not in done.stderr


def test_stopping_ends_it_under_a_terminal_that_is_told_and_loses_nothing(
    home: Home, engine: psutil.Process
) -> None:
    name = str(listed(home)["name"])
    with attached(home) as terminal:
        terminal.until(t.whole)
        done = qtui(home, "stop", name)
        assert done.returncode == 0, done.stderr
        wait_for(lambda: engine not in home.engines(), "its process is gone", 10)
        terminal.until(lambda s: any("restarts it" in line for line in s), what="the banner")
        terminal.press("q")
        terminal.ended()
    assert listed(home)["state"] == "past"
    done = qtui(home, "attach", name)
    assert done.returncode == 2
    assert "opens it again" in done.stderr
    assert known(home)
