"""The scheduler: most urgent first, between any two steps; cancelling and failing told once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from engine import protocol as p
from engine.service.in_thread import AbandonedError, in_thread
from engine.service.jobs import Outcome, Steps
from engine.service.scheduler import Job, Scheduler
from engine.store.facts import FactStore
from engine.workspace import Workspace


class Told:
    """A scheduler with everything it tells, in order."""

    def __init__(self, at_rest: object = None) -> None:
        self.order: list[str] = []
        self.endings: queue.Queue[tuple[str, Outcome | None, BaseException | None]] = queue.Queue()
        self.scheduler = Scheduler(
            "test",
            lambda job, event: self.order.append(job.id),
            lambda job, outcome, error: self.endings.put((job.id, outcome, error)),
            at_rest or (lambda: None),  # type: ignore[arg-type]
        )

    def end(self) -> tuple[str, Outcome | None, BaseException | None]:
        return self.endings.get(timeout=10)


def steps(
    count: int, gate: threading.Event | None = None, reached: threading.Event | None = None
) -> Steps:
    for i in range(count):
        if gate is not None and i == 1:
            if reached is not None:
                reached.set()
            gate.wait(10)
        yield p.Stage("step", i, count)
    return Outcome(measured=count)


def test_a_job_can_be_run_before_the_others_of_its_urgency() -> None:
    told, gate, reached = Told(), threading.Event(), threading.Event()
    told.scheduler.submit(Job("one", "sweep", 4, steps(3, gate, reached)))
    assert reached.wait(10)
    told.scheduler.submit(Job("two", "sweep", 4, steps(2)))
    assert not told.scheduler.first("three")
    assert told.scheduler.first("two")
    gate.set()
    assert [told.end()[0], told.end()[0]] == ["two", "one"]
    assert told.order == ["one", "one", "two", "two", "one"]
    told.scheduler.close()


def test_the_more_urgent_job_runs_at_the_next_yield() -> None:
    told, gate, reached = Told(), threading.Event(), threading.Event()
    told.scheduler.submit(Job("slow", "sweep", 2, steps(4, gate, reached)))
    assert reached.wait(10)
    assert not told.scheduler.should_stop()
    told.scheduler.submit(Job("urgent", "evaluate", 0, steps(3)))
    assert told.scheduler.should_stop()
    gate.set()
    assert [told.end()[0], told.end()[0]] == ["urgent", "slow"]
    assert told.order == ["slow", "slow", "urgent", "urgent", "urgent", "slow", "slow"]
    told.scheduler.close()


def test_equally_urgent_jobs_run_in_order_of_arrival() -> None:
    told, gate, reached = Told(), threading.Event(), threading.Event()
    told.scheduler.submit(Job("first", "sweep", 1, steps(2, gate, reached)))
    assert reached.wait(10)
    told.scheduler.submit(Job("second", "sweep", 1, steps(1)))
    gate.set()
    assert [told.end()[0], told.end()[0]] == ["first", "second"]
    told.scheduler.close()


def test_cancelling_closes_the_generator_and_reports_no_outcome() -> None:
    begun, closed = threading.Event(), threading.Event()

    def endless() -> Steps:
        try:
            while True:
                begun.set()
                yield None
        finally:
            closed.set()

    told = Told()
    told.scheduler.submit(Job("endless", "sweep", 1, endless()))
    assert begun.wait(10)
    assert told.scheduler.cancel("endless")
    assert told.end() == ("endless", None, None)
    assert closed.is_set()
    assert not told.scheduler.cancel("endless")
    told.scheduler.close()


def test_a_job_that_raises_fails_alone() -> None:
    def failing() -> Steps:
        yield None
        raise ValueError("boom")

    told = Told()
    told.scheduler.submit(Job("failing", "sweep", 1, failing()))
    _, outcome, error = told.end()
    assert outcome is None
    assert isinstance(error, ValueError)
    told.scheduler.submit(Job("next", "sweep", 1, steps(1)))
    assert told.end() == ("next", Outcome(measured=1), None)
    told.scheduler.close()


def test_a_step_that_leaves_something_open_fails_its_job() -> None:
    def complain() -> None:
        raise AssertionError("a hook is left")

    told = Told(complain)
    told.scheduler.submit(Job("untidy", "sweep", 1, steps(3)))
    _, _, error = told.end()
    assert isinstance(error, AssertionError)
    told.scheduler.close()


def test_closing_ends_every_job() -> None:
    told, gate, reached = Told(), threading.Event(), threading.Event()
    told.scheduler.submit(Job("running", "sweep", 1, steps(5, gate, reached)))
    told.scheduler.submit(Job("waiting", "sweep", 2, steps(5)))
    assert reached.wait(10)
    threading.Timer(0.0, gate.set).start()
    told.scheduler.close()
    assert {told.end()[0], told.end()[0]} == {"running", "waiting"}


@pytest.mark.parametrize("leave", ["no_grad", "inference"])
def test_gradient_modes_left_open_across_a_yield_are_caught(leave: str, tmp_path: Path) -> None:
    import torch

    def untidy() -> Steps:
        with torch.no_grad() if leave == "no_grad" else torch.inference_mode():
            yield None
        return Outcome()

    facts = FactStore(tmp_path / "facts.sqlite")
    told = Told(Workspace(facts, p.Settings()).assert_at_rest)
    told.scheduler.submit(Job("untidy", "sweep", 1, untidy()))
    _, _, error = told.end()
    assert isinstance(error, AssertionError)
    told.scheduler.close()


def test_work_that_goes_on_aside_tells_and_returns() -> None:
    def work(report: Callable[[p.Stage], None]) -> str:
        report(p.Stage("weights", 0, 2))
        report(p.Stage("weights", 2, 2))
        return threading.current_thread().name

    steps = in_thread("loading", work, wait=True)
    assert [next(steps), next(steps)] == [p.Stage("weights", 0, 2), p.Stage("weights", 2, 2)]
    with pytest.raises(StopIteration) as stop:
        next(steps)
    assert stop.value.value == "loading"


def test_a_failure_aside_is_a_failure_of_the_job() -> None:
    def work(report: Callable[[p.Stage], None]) -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        next(in_thread("loading", work, wait=True))


def test_work_aside_is_broken_off_and_waited_for_when_its_job_is_closed() -> None:
    going_on, cleaned = threading.Event(), []

    def work(report: Callable[[p.Stage], None]) -> None:
        try:
            report(p.Stage("weights", 0, 2))
            assert going_on.wait(60)
            while True:  # until it is abandoned
                report(p.Stage("weights", 1, 2))
        finally:
            cleaned.append(True)

    steps = in_thread("loading", work, wait=True)
    next(steps)
    going_on.set()
    steps.close()
    assert cleaned


def test_a_job_that_breaks_itself_off_was_cancelled() -> None:
    def broken() -> Steps:
        yield None
        raise AbandonedError("no longer wanted")

    told = Told()
    told.scheduler.submit(Job("broken", "export", 0, broken()))
    job, outcome, error = told.end()
    assert (job, outcome, error) == ("broken", None, None)
    told.scheduler.close()


def test_a_result_that_cannot_be_sent_fails_its_own_job() -> None:
    class Found(msgspec.Struct):
        value: object

    def work() -> Steps:
        yield None
        return Outcome(result=Found(threading.Lock()))

    told = Told()
    told.scheduler.submit(Job("unsendable", "export", 0, work()))
    _, outcome, error = told.end()
    assert outcome is None
    assert isinstance(error, TypeError)
    told.scheduler.close()
