"""Datasets of a hub on this machine: asked through a proxy, not at all, or in vain."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import datasets
import datasets.config
import pytest
from huggingface_hub import close_session, constants

from engine.errors import TextError
from engine.texts import hub
from engine.texts.corpora import evaluation_text


@dataclass
class Server:
    """A server on loopback that answers everything with one status."""

    url: str
    status: int = 200
    asked: list[str] = field(default_factory=list)
    """What was asked for, as it stood in the request."""
    answers: threading.Event = field(default_factory=threading.Event)
    """Cleared, requests are taken and not answered."""


@contextmanager
def serving() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            server.asked.append(self.path)
            server.answers.wait(20)
            self.send_response(server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *given: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{listening.server_port}")
    server.answers.set()
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.answers.set()
        listening.shutdown()
        listening.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as each:
        yield each


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No offline mode, no proxies, and a client that has not read its environment yet."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    close_session()
    yield
    close_session()


def at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)


def flags() -> tuple[bool, bool, dict[str, str]]:
    return constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE, dict(os.environ)


def test_a_hub_that_answers_is_reachable_whatever_it_answers(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, server.url)
    for server.status in (200, 401, 404):
        assert hub.reachable()
    assert len(server.asked) == 3


def test_a_hub_behind_a_proxy_is_asked_through_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, "http://hub.invalid")
    assert not hub.reachable()
    monkeypatch.setenv("HTTP_PROXY", server.url)
    close_session()
    assert hub.reachable()
    assert server.asked == ["http://hub.invalid/"]
    server.status = 502  # the proxy finds no hub
    assert not hub.reachable()


@pytest.mark.parametrize("proxy", ["nonsense://proxy", "socks5://127.0.0.1:9"])
def test_a_proxy_that_cannot_be_used_is_no_way_to_the_hub(
    proxy: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client refuses to be made: with a scheme it does not know, or without its SOCKS part."""
    at(monkeypatch, server.url)
    monkeypatch.setenv("ALL_PROXY", proxy)
    close_session()
    assert not hub.reachable()
    assert not server.asked


def test_a_host_excepted_from_the_proxy_is_asked_directly(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        at(monkeypatch, server.url)
        assert hub.reachable()
        assert server.asked
        assert not proxy.asked


def test_a_hub_that_never_answers_is_given_up_soon(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, server.url)
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.2)
    server.answers.clear()
    begun = time.monotonic()
    assert not hub.reachable()
    assert time.monotonic() - begun < 10


def test_offline_mode_asks_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub.reachable()
    assert not server.asked


def test_one_load_is_offline_and_nothing_stays_so(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a hub the cache is read, with no request; the next load asks the hub again."""
    seen: list[tuple[bool, bool]] = []

    def load_dataset(*given: Any, **more: Any) -> Any:
        seen.append(flags()[:2])
        raise FileNotFoundError("not cached")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    before = flags()
    with serving() as gone:
        at(monkeypatch, gone.url)
    with pytest.raises(TextError, match="the dataset a/b is not in the local cache, and the hub"):
        hub.load_split("a/b", None, "test")
    assert flags() == before
    at(monkeypatch, server.url)
    with pytest.raises(TextError, match="the dataset a/b not cached"):
        hub.load_split("a/b", None, "test")
    assert seen == [(True, True), (False, False)]
    assert flags() == before


def test_the_libraries_read_their_flags_at_each_request(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `hub.offline` rests on: a real load sends nothing while it is on."""
    at(monkeypatch, server.url)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
    with hub.offline(), pytest.raises(Exception, match=r"Couldn't reach|offline"):
        datasets.load_dataset("nobody/nothing", split="test")
    assert not server.asked


def test_a_default_text_that_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as gone:
        at(monkeypatch, gone.url)
    told: list[str] = []
    assert evaluation_text(None, demo=False, notify=told.append).name == "stdlib"
    assert "the hub cannot be reached; evaluating on this machine's Python" in told[0]
