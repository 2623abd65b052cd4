"""Commands without an interface serve their engine while they run, and share it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from engine import protocol as p
from engine.client import Attached, RunEndedError, attached, spawned
from engine.client.running import Engine, look, stop
from engine.session import running
from engine.store.paths import session_name
from qtui.cli.options import Shared
from tests import forked, tiny
from tests.drive import ended, until
from tests.terminal import wait_for

LONG = ",".join(f"int{bits}-g32" for bits in range(2, 9))
"""A sweep that does not end before it is stopped."""
Begin = Callable[..., BaseProcess]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint whose sweep outlasts what is looked at meanwhile."""
    return tiny.build("llama", tmp_path / "model", num_hidden_layers=4)


@pytest.fixture
def begin(source: Path, prose: Path, tmp_path: Path) -> Iterator[Begin]:
    """Begins a sweep in another process; what it says goes to the file ``FORMATS.said``."""
    begun: list[BaseProcess] = []

    def sweep(formats: str = LONG) -> BaseProcess:
        process = forked.qtui(
            "sweep", str(source), "--tokens", "2048", "--seq-len", "32", "--text", str(prose),
            "--formats", formats, "--json", str(tmp_path / f"{formats}.json"),
            said=tmp_path / f"{formats}.said",
        )  # fmt: skip
        begun.append(process)
        return process

    yield sweep
    for process in begun:
        process.kill()
        process.join()


def measuring(source: Path) -> Engine:
    """The engine of the source's session, once it measures."""
    found: list[Engine] = []

    def look_again() -> bool:
        engine = look(session_name(str(source)))
        found[:] = [engine] if engine is not None and engine.jobs else []
        return bool(found) and found[0].jobs[0].kind == "sweep" and found[0].jobs[0].done > 0

    wait_for(look_again, "a sweep that can be looked at")
    return found[0]


def client_of(source: Path) -> Attached:
    engine = attached(str(source))
    assert engine is not None
    assert engine.receive(10) is not None
    return engine


def until_it_ends(client: Attached) -> None:
    """Receive everything until the engine hangs up."""
    while True:
        client.receive(60)


def test_a_command_can_be_watched_and_used_by_another_which_goes_on_without_it(
    source: Path, begin: Begin, tmp_path: Path
) -> None:
    first = begin("int4-g32,int5-g32,int6-g32")  # long enough for the second to come
    engine = measuring(source)
    assert (engine.of_run, engine.pid) == (True, first.pid)
    with closing(client_of(source)) as watching:
        assert watching.of_run
        assert running(watching.session)[0].kind == "sweep"
        second = begin("int3-g32")
        wait_for(
            lambda: (seen := look(session_name(str(source)))) is not None and len(seen.jobs) > 1,
            "both jobs in one engine",
        )
        with pytest.raises(RunEndedError, match=r"the command that had .* open has ended"):
            until_it_ends(watching)
        # It missed nothing: the end of the job came before the end of the engine.
        ended = [job.status for job in watching.session.jobs.values() if job.kind == "sweep"]
        assert ended[0] == "done"
    first.join(120)
    assert first.exitcode == 0
    second.join(120)
    said = (tmp_path / "int3-g32.said").read_text()
    assert second.exitcode == 0, said
    assert "has ended: going on without it; its results are saved" in said


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_command_goes_on_by_itself_when_the_engine_of_a_terminal_ends(
    how: str, source: Path, prose: Path, begin: Begin, tmp_path: Path
) -> None:
    """What it had measured there is found, and the figures are those of a run of its own."""
    chosen, _ = Shared(text=str(prose), tokens=2048, seq_len=32).resolve()
    terminal = spawned(str(source), nice=0)
    terminal.send(p.Open(str(source), chosen))
    until(terminal, ended("open"))
    command = begin("int4-g32,int5-g32")
    measuring(source)
    until(terminal, lambda event: isinstance(event, p.Learned))
    terminal.send(p.AskClients())
    (*_, clients) = until(terminal, lambda event: isinstance(event, p.Clients))
    assert clients == p.Clients(commands=("qtui sweep",))
    pid = measuring(source).pid
    if how == "stopped":
        stop(session_name(str(source)))
    else:
        os.kill(pid, signal.SIGKILL)
    terminal.close()
    command.join()
    said = (tmp_path / "int4-g32,int5-g32.said").read_text()
    assert command.exitcode == 0, said
    assert said.count("going on without it; its results are saved") == 1
    found = json.loads((tmp_path / "int4-g32,int5-g32.json").read_text())
    assert found["resumed"] > 0
    again = begin("int4-g32,int5-g32")
    again.join()
    later = json.loads((tmp_path / "int4-g32,int5-g32.json").read_text())
    assert [later[name] for name in ("layers", "baseline", "additivity")] == [
        found[name] for name in ("layers", "baseline", "additivity")
    ]


def test_to_stop_it_ends_the_command_in_good_order(source: Path, begin: Begin) -> None:
    process = begin()
    measuring(source)
    with closing(client_of(source)) as leaving:
        leaving.send(p.Stop())  # leaves; the command is another client
    assert measuring(source).pid == process.pid
    assert stop(session_name(str(source))) == process.pid
    process.join(20)
    assert process.exitcode == 130
    assert look(session_name(str(source))) is None


def test_an_engine_that_is_killed_under_a_watcher_is_said(source: Path, begin: Begin) -> None:
    process = begin()
    measuring(source)
    with closing(client_of(source)) as watching:
        process.kill()
        with pytest.raises(RunEndedError):
            until_it_ends(watching)
    process.join()
    assert process.exitcode == -signal.SIGKILL
