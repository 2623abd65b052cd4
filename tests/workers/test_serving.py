"""What leaves a worker: every event but idle progress, in order, facts together."""

from __future__ import annotations

import threading

import pytest

from engine import protocol as p
from engine.workers import serving
from engine.workers.serving import Outlet

END = p.JobEnded(job="units-1", kind="units", status="done")
NOTICE = p.Notice("info", "between")


def learnt(key: str, *, fresh: bool = True) -> p.Learned:
    return p.Learned((key,), (p.Baseline(1.0, 0.1, 2.7, 8),), fresh)


def progress(done: int) -> p.Progress:
    return p.Progress(job="units-1", done=done, total=9)


def test_facts_of_a_moment_leave_in_one_event(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[p.AnyEvent] = []
    ended = threading.Event()

    def take(*messages: p.Sent) -> None:
        sent.extend(message.event for message in messages)
        if END in sent:
            ended.set()

    monkeypatch.setattr(serving, "DELAY", 3600.0)  # so that only the end has anything sent
    outlet = Outlet(take)
    given = (
        learnt("a"), progress(1), learnt("b"), NOTICE, learnt("c"), learnt("d", fresh=False),
        learnt("e", fresh=False), END,
    )  # fmt: skip
    for event in given:
        outlet.send(event)
    assert ended.is_set()
    keys = [event.keys if isinstance(event, p.Learned) else event for event in sent]
    assert keys == [("a", "b"), NOTICE, ("c",), ("d", "e"), END]
    assert [e.fresh for e in sent if isinstance(e, p.Learned)] == [True, True, False]
    assert [len(e.facts) for e in sent if isinstance(e, p.Learned)] == [2, 1, 2]


def test_what_is_alone_leaves_after_a_moment() -> None:
    sent = threading.Event()
    Outlet(lambda *messages: sent.set()).send(NOTICE)
    assert sent.wait(60)
