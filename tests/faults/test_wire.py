"""Whatever a client sends, it alone is dropped: the server lives, other clients notice nothing."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import protocol as p
from engine.client import SocketLink, connect
from engine.service.engine import Engine
from engine.service.server import Server
from engine.service.wire import LENGTH, frame
from engine.store.database import IN_MEMORY
from engine.store.facts import FactStore
from engine.store.journal import Journal
from engine.store.paths import socket_file
from tests import tiny
from tests.faults.table import put

PATIENCE = 20.0
HELLO = frame(p.Hello())


class Served:
    """A real engine with an open checkpoint, its server, and a client that must not suffer."""

    def __init__(self, source: Path) -> None:
        self.unhandled: list[object] = []
        """Exceptions that nobody caught, and those that are no sentence."""
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda loop, context: self.unhandled.append(context))
        self.filter = self._keep_failures
        logging.getLogger("engine.service.engine").addFilter(self.filter)
        self.server = Server(socket_file("fuzzed"), "fuzzed")
        facts = FactStore(IN_MEMORY)
        self.engine = Engine(Journal(None, facts), facts, self.server.announce)
        self.running = self.loop.create_task(self.server.run(lambda: self.engine, 3600))
        self.good = self.loop.run_until_complete(self._attach(str(source)))
        self.asked = 0

    async def _attach(self, source: str) -> SocketLink:
        while (link := await connect("fuzzed")) is None:
            await asyncio.sleep(0)
        await link.receive()
        await link.send(p.Open(source, p.Settings(), model=False))
        async with asyncio.timeout(PATIENCE):
            while True:
                match await link.receive():
                    case p.Sent(event=p.JobEnded(kind="open", status="done")):
                        return link

    def survives(self, *sent: bytes) -> None:
        """Send bytes from another client, then ask something as the good one."""
        self.loop.run_until_complete(self._survives(sent))

    async def _survives(self, sent: tuple[bytes, ...]) -> None:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_unix_connection(str(self.server.path))
            with suppress(ConnectionError):
                for data in sent:
                    writer.write(data)
                    await writer.drain()
                writer.write_eof()
                while await reader.read(1 << 16):
                    pass
            writer.close()
            self.asked += 1
            ask = str(self.asked)
            await self.good.send(p.RunFirst("no such job", ask=ask))
            while True:
                received = await self.good.receive()
                assert isinstance(received, p.Sent)
                if isinstance(received.event, p.Refused) and received.event.ask == ask:
                    break
        unhandled, self.unhandled = self.unhandled, []
        assert not unhandled
        assert not self.running.done()
        assert len(self.server._clients) <= 2  # the other's end may not be handled yet

    def _keep_failures(self, record: logging.LogRecord) -> bool:
        if record.exc_info:
            self.unhandled.append(record.exc_info)
        return True

    def close(self) -> None:
        logging.getLogger("engine.service.engine").removeFilter(self.filter)
        self.loop.run_until_complete(self.good.close())
        self.server.stop()
        self.loop.run_until_complete(self.running)
        self.engine.close()
        self.loop.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("wire") / "model")


@pytest.fixture
def served(checkpoint: Path) -> Iterator[Served]:
    found = Served(checkpoint)
    yield found
    found.close()


def prefixed(data: bytes) -> bytes:
    return LENGTH.pack(len(data)) + data


LAYER = "model.layers.0.self_attn.q_proj"
COMMANDS: tuple[p.AnyCommand, ...] = (
    p.Triage(("int4-g32",)), p.SetFormat((LAYER,), "int4-g32"), p.Undo(), p.Redo(),
    p.Cancel("sweep-1"), p.RunFirst("x"), p.AskHistogram(LAYER), p.Sweep(("int8",)),
    p.Evaluate("int8"), p.Open("demo", p.Settings()),
)  # fmt: skip
VALID = [p.encode(command) for command in COMMANDS]
WORDS = (LAYER, "", "int4", "re:(a+)+$", "\x1b[2J")
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 9), inner),
    max_leaves=8,
)  # fmt: skip


@st.composite
def altered(draw: st.DrawFn) -> bytes:
    """A command with some of its fields replaced, left out, or added."""
    message: dict[str, Any] = msgspec.msgpack.decode(draw(st.sampled_from(VALID)))
    for name in draw(st.lists(st.sampled_from([*message, "ask", "new"]), max_size=3)):
        if name in message and draw(st.booleans()):
            del message[name]
        else:
            message[name] = draw(JUNK | st.sampled_from(WORDS))
    return prefixed(msgspec.msgpack.encode(message))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A command with some of its bytes changed, its length right or not."""
    data = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    cut = bytes(data[: draw(st.integers(0, len(data)))])
    return draw(st.sampled_from([prefixed(bytes(data)), prefixed(cut), LENGTH.pack(9999) + cut]))


BOMBS = (
    prefixed(b"\x91" * 100_000),  # lists in lists
    prefixed(b"\x81\xa4type" * 50_000),
    prefixed(b"\xdd\xff\xff\xff\xff"), prefixed(b"\xdf\xff\xff\xff\xff"),
    prefixed(b"\xc6\xff\xff\xff\xff"), prefixed(b"\xdb\xff\xff\xff\xff"),
    b"\xff\xff\xff\xff", LENGTH.pack(p.MAX_FRAME + 1), LENGTH.pack(0),
    frame(p.Fragment(b"", last=False)) * 1000, frame(p.Fragment(b"\x91" * 99_999, last=True)),
    frame(p.Fragment(p.encode(p.Fragment(b"x", last=True)), last=True)),
    frame(p.Sent(1, p.Notice("error", "from a client"))), frame(p.Snapshot(9, b"nonsense")), HELLO,
)  # fmt: skip


@given(
    greets=st.booleans(),
    sent=st.lists(
        st.binary(max_size=64) | altered() | mutated() | st.sampled_from(BOMBS), max_size=4
    ),
)
@settings(
    max_examples=1000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_messages_that_nobody_should_send(served: Served, greets: bool, sent: list[bytes]) -> None:
    if not any(b"Stop" in data for data in sent):
        served.survives(*([HELLO] if greets else []), *sent)


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb[:12].hex())
def test_bombs(served: Served, bomb: bytes) -> None:
    served.survives(HELLO, bomb)


def test_fragments_without_an_end(served: Served) -> None:
    """They are counted, not collected."""
    piece = frame(p.Fragment(bytes(p.MAX_FRAME - 64), last=False))
    served.survives(HELLO, *[piece] * 80)


@pytest.mark.soak
@pytest.mark.timeout(20_000)
def test_a_million_messages(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    # pytest would keep every line of the log until the end: some gigabytes.
    monkeypatch.setattr(logging.root, "handlers", [logging.NullHandler()])
    chance = random.Random(11)
    for _ in range(1_000_000):
        data = bytearray(chance.choice(VALID))
        for _ in range(chance.randint(1, 6)):
            match chance.randrange(4):
                case 0:
                    data[chance.randrange(len(data))] = chance.randrange(256)
                case 1:
                    del data[chance.randrange(len(data)) :]
                case 2:
                    data[chance.randrange(len(data) + 1) :] += chance.randbytes(9)
                case _:
                    at = chance.randrange(len(data) + 1)
                    data[at:at] = data[: chance.randrange(len(data) + 1)]
            data = data[:4096] or bytearray(1)
        if b"Stop" not in data:
            served.survives(HELLO, prefixed(bytes(data)))
    put("fuzzed wire messages", "1,000,000: 0")
