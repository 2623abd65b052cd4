"""A worker of a cluster, without the cluster: whom it connects to, and whom it does not serve."""

from __future__ import annotations

import socket

import pytest

from engine import protocol as p
from engine.errors import EngineError
from engine.workers import hosted, serving
from engine.workers.channel import Channel
from engine.workers.hosted import Hosted


@pytest.fixture(autouse=True)
def left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosted, "own_process", lambda: None)


def test_it_says_its_token_and_serves_who_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    said = p.Sent(0, p.Notice("info", "here"))
    monkeypatch.setattr(serving, "serve", lambda channel: channel.send(said))
    with socket.create_server(("127.0.0.1", 0)) as server:
        Hosted(p.WIRE_VERSION, None).connect("127.0.0.1", server.getsockname()[1], b"token")
        connected, _ = server.accept()
        assert connected.recv(5, socket.MSG_WAITALL) == b"token"
        channel = Channel(connected)
        assert channel.receive(60) == said
        channel.close()


def test_messages_of_another_version_are_not_read() -> None:
    with pytest.raises(EngineError, match="install the same version of qtui"):
        Hosted(p.WIRE_VERSION + 1, None)
