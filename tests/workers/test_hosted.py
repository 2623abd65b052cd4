"""A worker of a cluster, without the cluster: commands in, frames of events out."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import protocol as p
from engine.errors import EngineError
from engine.workers import hosted
from engine.workers.channel import Channel
from engine.workers.hosted import Hosted


@pytest.fixture(autouse=True)
def left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosted, "own_process", lambda: None)


def events(frames: Iterator[bytes]) -> Iterator[p.AnyEvent]:
    """Read frames as an engine does."""
    ours, theirs = map(Channel, socket.socketpair())
    for each in frames:
        theirs.pass_on(each)
    theirs.close()
    try:
        while True:
            message = ours.receive(60)
            assert isinstance(message, p.Sent)
            yield message.event
    except EOFError:
        ours.close()


def test_every_command_ends_with_its_end(tmp_path: Path) -> None:
    worker = Hosted(p.WIRE_VERSION, None)
    for _ in range(2):
        opening = p.identified(p.Open(str(tmp_path / "nothing"), p.Settings()))
        *_, last = events(worker.run(p.encode(opening)))
        assert isinstance(last, p.JobEnded)
        assert "nothing" in last.message
    units = p.identified(
        p.MeasureUnits(format="int8", direction="degrade", by="layer", units=("a",), nll=1.0)
    )
    *_, last = events(worker.run(p.encode(units)))
    assert isinstance(last, p.Refused | p.JobEnded)
    worker._engine.close()


def test_what_ends_the_engine_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Hosted(p.WIRE_VERSION, None)

    def broken(command: p.AnyCommand) -> Iterator[p.AnyEvent]:
        yield p.Notice("info", "so far")
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(worker._engine, "run", broken)
    opening = p.identified(p.Open("demo", p.Settings()))
    with pytest.raises(ZeroDivisionError, match="a mistake"):
        list(worker.run(p.encode(opening)))
    worker._engine.close()


def test_messages_of_another_version_are_not_read() -> None:
    with pytest.raises(EngineError, match="install the same version of qtui"):
        Hosted(p.WIRE_VERSION + 1, None)
