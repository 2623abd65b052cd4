"""Clients that stop reading, and many at once: the engine waits for none, and all agree."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from engine import protocol as p
from engine.client import Attached, attached
from engine.client.attached import spawned
from engine.service.wire import LENGTH, frame
from engine.session import Session
from engine.store.paths import session_name, socket_file
from tests import tiny
from tests.drive import ended, settings, until
from tests.faults.table import put

TOGGLES = 12
LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


class Stalled:
    """A client that says hello, and reads nothing until it is asked to."""

    def __init__(self, source: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect(str(socket_file(session_name(source))))
        self.socket.sendall(frame(p.Hello()))

    def read(self, until_seq: int) -> list[int]:
        """Numbers of the events that it got after its snapshot, up to one."""
        file, seen, start = self.socket.makefile("rb"), [], 0
        while not seen or seen[-1] < until_seq:
            message = p.decode_frame(file.read(*LENGTH.unpack(file.read(LENGTH.size))))
            if isinstance(message, p.Snapshot):
                start = message.seq
            elif isinstance(message, p.Sent) and message.seq > start:
                seen.append(message.seq)
        return [start, *seen]


@contextmanager
def clients(source: str, number: int) -> Iterator[list[Attached]]:
    """The first starts an engine, which the last to leave stops."""
    first = spawned(source, nice=0)
    others = [attached(source) for _ in range(number - 1)]
    found = [first, *(each for each in others if each is not None)]
    assert len(found) == number
    try:
        yield found
    finally:
        for each in found[1:]:
            each.close()
        first.send(p.Stop(others=True))
        first.close()


def toggle(client: Attached, layer: str, formats: list[str]) -> None:
    for text in formats:
        client.send(p.SetFormat((layer,), text))


def picture(session: Session) -> object:
    """What clients must agree on: all but what is passing."""
    return (
        session.seq, session.recipe(), session.history, session.tried, session.layers.names,
        session.effects.measured, session.effects.estimated, list(session.scores),
    )  # fmt: skip


def test_eight_clients_agree_while_two_toggle_and_one_reads_nothing(
    tmp_path: Path, prose: Path
) -> None:
    source = str(tiny.build("llama", tmp_path / "model", num_hidden_layers=2))
    with clients(source, 8) as all_of_them:
        stalled = Stalled(source)
        one, two, *_ = all_of_them
        one.send(p.Open(source, settings(prose)))
        one.send(p.Sweep())
        until(one, lambda event: isinstance(event, p.Learned))
        togglers = [
            threading.Thread(target=toggle, args=(client, layer, ["int4-g32", "int8"] * TOGGLES))
            for client in (one, two)
            for layer in LAYERS
        ]
        for each in togglers:
            each.start()
        for each in togglers:
            each.join()
        until(one, ended("sweep"))
        one.send(p.NameRecipe(0, "the end"))
        for client in all_of_them:
            until(client, lambda event: isinstance(event, p.RecipeNamed))
        pictures = [picture(client.session) for client in all_of_them]
        assert all(each == pictures[0] for each in pictures)
        assert len(one.session.history) >= 2
        # Who read nothing held up nobody, and misses nothing.
        numbers = stalled.read(one.session.seq)
        assert numbers == list(range(numbers[0], one.session.seq + 1))
        stalled.socket.close()
        # Who attaches now sees the same.
        late = attached(source)
        assert late is not None
        with closing(late):
            late.receive(10)
            assert late.session.recipe() == one.session.recipe()


def seconds_of_a_sweep(source: str, text: Path, stalled: int, readers: int) -> float:
    """From the first result of a sweep to its end, with other clients attached."""
    chosen = settings(text, tokens=4096, fresh=True)
    with clients(source, 1 + readers) as (one, *others):
        held = [Stalled(source) for _ in range(stalled)]
        one.send(p.Open(source, chosen))
        one.send(p.Sweep())
        reading = [
            threading.Thread(target=until, args=(client, ended("sweep"))) for client in others
        ]
        for each in reading:
            each.start()
        until(one, lambda e: isinstance(e, p.Learned) and isinstance(e.facts[0], p.Sensitivity))
        before = time.monotonic()
        until(one, ended("sweep"))
        spent = time.monotonic() - before
        for each in reading:
            each.join()
        for each in held:
            each.socket.close()
    return spent


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_pace_of_a_sweep_with_clients_that_read_and_that_do_not(
    tmp_path: Path, prose: Path
) -> None:
    """Side by side in turns: what is said of it holds on a machine that does nothing else."""
    source = str(tiny.build("llama", tmp_path / "model", num_hidden_layers=8))
    spent: dict[tuple[int, int], list[float]] = {(0, 0): [], (1, 0): [], (0, 7): []}
    for _ in range(5):
        for (stalled, readers), seconds in spent.items():
            seconds.append(seconds_of_a_sweep(source, prose, stalled, readers))
    alone, held, read = (min(each) for each in spent.values())
    put("pace of a sweep", f"{held / alone:.3f} / {read / alone:.3f}")
