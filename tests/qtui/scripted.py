"""An engine that answers each command with events a test wrote, as `Client` has them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeAlias

import msgspec
import pytest

from engine import client
from engine import protocol as p
from engine.session import Session, apply
from tests.qtui import replay as r

Answer: TypeAlias = Callable[[p.AnyCommand, Session], Iterable[p.AnyEvent | BaseException]]


class Scripted:
    """Takes commands, keeps them, and gives the events that answer them, folded."""

    beside = False

    def __init__(self, answer: Answer, session: Session | None = None) -> None:
        self.session = session or Session()
        self.sent: list[p.AnyCommand] = []
        self.closed = False
        self._answer = answer
        self._queue: deque[p.AnyEvent | BaseException] = deque()

    def send(self, command: p.AnyCommand) -> None:
        mark = command.ask
        command = msgspec.structs.replace(command, ask="")
        self.sent.append(command)
        # An engine has folded what it tells before a client hears of it.
        for event in self._answer(command, self.session):
            self._queue.append(_marked(event, command, mark))

    def receive(self, timeout: float | None = None) -> p.AnyEvent | None:
        assert timeout is not None, "a wait without end cannot be interrupted"
        if not self._queue:
            raise AssertionError(f"waits for what never comes after {self.sent}")
        event = self._queue.popleft()
        if isinstance(event, BaseException):
            raise event
        apply(self.session, event)
        return event

    def close(self) -> None:
        self.closed = True


def _marked(
    event: p.AnyEvent | BaseException, command: p.AnyCommand, mark: str
) -> p.AnyEvent | BaseException:
    """Give an answer the mark of the command it answers, as an engine does."""
    if isinstance(event, p.JobStarted) and isinstance(event.command, type(command)):
        if not event.ask:
            asked = msgspec.structs.replace(event.command, ask=mark)
            return msgspec.structs.replace(event, command=asked)
    elif isinstance(event, p.Refused) and event.command == type(command).__name__:
        return event if event.ask else msgspec.structs.replace(event, ask=mark)
    return event


def whole(command: p.AnyCommand, session: Session) -> Iterable[p.AnyEvent]:
    """What an engine answers when everything goes well."""
    match command:
        case p.Open(model=False):
            yield from list(r.opening())[:4]
            yield p.JobEnded(job="1", kind="open", status="done")
        case p.Open():
            yield from r.opening()
        case p.Triage():
            *begun, ended = r.triaged()
            yield from begun
            assert isinstance(ended, p.JobEnded)
            yield p.JobEnded(
                job=ended.job, kind=ended.kind, status="done", resumed=3,
                timings={"read_s": 0.25, "total_s": 1.5},
            )  # fmt: skip
        case p.Sweep():
            *begun, _ = r.swept()
            yield from begun
            yield p.Learned(("c",), (p.Control("lm_head", 0.0, 0.0),))
            yield p.Learned(
                ("a",),
                (
                    p.Additivity(
                        format=r.FORMAT, layers=35, kl=0.97, dnll=float("nan"),
                        together_kl=0.04, sum_kl=0.0412,
                    ),
                ),
            )  # fmt: skip
            yield p.JobEnded(
                job="3", kind="sweep", status="done", resumed=2,
                timings={"load_s": 1.2, "forward_s": 0.8, "quantize_s": 0.1, "estimate_s": 0.0,
                         "measure_s": 20.0},
            )  # fmt: skip
        case p.Evaluate():
            yield from evaluated(command, session)
        case p.Export():
            yield from exported(command)
        case _:
            pass


def evaluated(command: p.Evaluate, session: Session) -> Iterable[p.AnyEvent]:
    """A recipe is measured; the session's own stays."""
    from engine.session import recipe_hash

    layers = dict(command.layers)
    if command.format != "kept":
        body = {name: command.format for name in r.names() if ".layers." in name}
        layers = {**body, **layers}
    recipe = recipe_hash(layers)
    yield p.JobStarted(
        job="4", kind="evaluate", command=p.Evaluate(), title="evaluate", recipe=recipe
    )
    yield p.Progress(job="4", done=8, total=16)
    yield p.Learned(("r",), (r.score(recipe, ppl=26.42, half=0.05),))
    yield p.JobEnded(job="4", kind="evaluate", status="done", resumed=1, timings={"load_s": 1.2})


def exported(command: p.Export) -> Iterable[p.AnyEvent]:
    """A recipe is written; one layer of it cannot hold the format."""
    layers = command.layers or {r.names()[1]: command.format, r.names()[2]: command.format}
    yield p.Fallback(layer=r.names()[3], format=r.FORMAT, why="rows of 100")
    yield p.JobStarted(job="5", kind="export", command=p.Export(out="/out"), title="export")
    yield p.Progress(
        job="5",
        done=1_300_000,
        total=2_600_000,
        phase="writing",
        subject=r.names()[1],
        in_bytes=True,
    )
    yield p.Exported(job="9", folder="/theirs", bytes=1, recipe={}, quantised=[],
                     bits_per_weight=1.0)  # fmt: skip
    yield p.Exported(
        job="5", folder=command.out, bytes=2_600_000, recipe=dict(layers), quantised=list(layers),
        bits_per_weight=4.25, bits_all=4.5, notes=["the head was \x1b[2Jtied"],
    )  # fmt: skip
    yield p.JobEnded(job="5", kind="export", status="done", timings={"total_s": 1.5})


def install(
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer = whole,
    *,
    attached: Session | None = None,
) -> Scripted:
    """Let every run meet a scripted engine: one of its own, or a running one with a session."""
    engine = Scripted(answer, attached)
    running = engine if attached is not None else None
    monkeypatch.setattr(client, "attached", lambda source, command: running)
    monkeypatch.setattr(client, "own_process", lambda source: None)
    monkeypatch.setattr(client, "in_process", lambda source, **_: engine)
    return engine
