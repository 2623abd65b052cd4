"""An engine that measures nothing, on a session's real socket: ``python -m tests.bench.pretend``.

It lists as many layers as it is told to, and sweeps them without end, as fast as it is told to.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
from collections.abc import Iterator

from engine import protocol as p
from engine.client import log_file
from engine.service.wire import frame, read_frame
from engine.session import Session, encode_session
from engine.store.paths import session_name, socket_file
from tests.qtui import replay as r
from tests.qtui.play import Pretender

EXPERTS = 64
TRIAGED_AT_ONCE = 500
TICK = 0.01
"""Seconds between two bursts of events."""


def layer_names(count: int) -> list[str]:
    """Names as a mixture of experts has them."""
    each = ("gate_proj", "up_proj", "down_proj")
    found = (
        f"model.layers.{block}.mlp.experts.{expert}.{kind}"
        for block in itertools.count()
        for expert in range(EXPERTS)
        for kind in each
    )
    return list(itertools.islice(found, count))


def triaged(layers: list[str]) -> Iterator[p.AnyEvent]:
    """The weights of all layers, many in an event."""
    yield p.JobStarted(
        job="2", kind="triage", command=p.Triage(), title="triage", total=len(layers)
    )
    for at in range(0, len(layers), TRIAGED_AT_ONCE):
        rows = range(at, min(at + TRIAGED_AT_ONCE, len(layers)))
        facts = tuple(r.weights(layers[row], row) for row in rows)
        yield p.Learned(tuple(f"w{row}" for row in rows), facts)
    yield p.JobEnded(job="2", kind="triage", status="done", measured=len(layers))


def sweep(layers: list[str]) -> Iterator[p.AnyEvent]:
    """Results and progress by turns, over all layers in a random order, again and again."""
    title = f"sweep {r.FORMAT}"
    yield p.JobStarted(
        job="3", kind="sweep", command=p.Sweep((r.FORMAT,)), title=title, total=len(layers)
    )  # fmt: skip
    order = random.Random(7).sample(range(len(layers)), len(layers))
    for turn in itertools.count():
        for done, row in enumerate(order, 1):
            fact = r.sensitivity(layers[row], row + 7 * turn)
            yield p.Learned((f"s{row}",), (fact,))
            left = (len(layers) - done) * 0.01
            yield p.Progress(
                job="3", done=done, total=len(layers), seconds_left=left, phase="measuring",
                subject=layers[row],
            )  # fmt: skip


class Engine(Pretender):
    """Answers commands as an engine would; sweeps ``rate`` events a second."""

    def __init__(self, layers: list[str], rate: float) -> None:
        super().__init__(pace=0.25)
        self.layers, self.rate = layers, rate

    async def send(self, command: p.AnyCommand) -> None:
        """Carry out a command."""
        match command:
            case p.Open():
                self.give(*r.opening(self.layers))
            case p.Triage():
                self.begin("2", triaged(self.layers), 0.02)
            case p.Sweep():
                self.tasks["3"] = asyncio.create_task(self._sweep())
            case _:
                await super().send(command)

    async def _sweep(self) -> None:
        """Events at an even pace, none left out where the clock was late."""
        loop = asyncio.get_running_loop()
        began, given = loop.time(), 0
        events = sweep(self.layers)
        while True:
            wanted = int((loop.time() - began) * self.rate)
            self.give(*itertools.islice(events, max(0, wanted - given)))
            given = max(given, wanted)
            await asyncio.sleep(TICK)


async def serve(source: str, layers: int, rate: float) -> None:
    """Listen until the first client leaves."""
    name = session_name(source)
    log_file(name).parent.mkdir(parents=True, exist_ok=True)
    done = asyncio.Event()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine = Engine(layer_names(layers), rate)
        await read_frame(reader)
        writer.write(frame(p.Hello(session=name)))

        async def say() -> None:
            while True:
                sent = await engine.receive()
                if isinstance(sent, Session):  # an engine says first what it knows
                    writer.write(frame(p.Snapshot(0, encode_session(sent))))
                else:
                    writer.write(frame(sent))
                await writer.drain()

        saying = asyncio.create_task(say())
        with contextlib.suppress(ConnectionError):  # whoever looks on may be killed
            while (message := await read_frame(reader)) is not None:
                if isinstance(message, p.Stop):
                    break
                assert isinstance(message, p.Command)
                await engine.send(message)
        saying.cancel()
        writer.close()
        done.set()

    server = await asyncio.start_unix_server(client, path=str(socket_file(name)))
    await done.wait()
    server.close()


def main() -> None:
    """Serve, with the options given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="demo", help="whose session's socket")
    parser.add_argument("--layers", type=int, default=50_000)
    parser.add_argument("--rate", type=float, default=200.0, help="events a second")
    given = parser.parse_args()
    asyncio.run(serve(given.source, given.layers, given.rate))


if __name__ == "__main__":
    main()
