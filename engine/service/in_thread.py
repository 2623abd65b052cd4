"""Run part of a job in a thread of its own, while the job yields its progress."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator
from typing import TypeVar

from engine import protocol as p
from engine.errors import EngineError

T = TypeVar("T")
AnyAdvance = TypeVar("AnyAdvance", p.Stage, p.Progress)

TELL_SECONDS = 0.1
"""Minimum seconds between two progress events."""


class AbandonedError(EngineError):
    """Raised inside the work when its job was cancelled, to interrupt it."""


def in_thread(
    name: str, work: Callable[[Callable[[AnyAdvance], None]], T], *, wait: bool
) -> Generator[AnyAdvance, None, T]:
    """Run work in a thread of its own, yielding its progress.

    Use as ``value = yield from in_thread("loading", lambda report: ..., wait=False)`` inside a
    job. Once the job is closed, ``report`` raises `AbandonedError` in the work.

    Args:
        name: of the thread.
        work: called with a function that takes its progress, as often as it likes.
        wait: whether closing the job waits for the work to end.

    Raises:
        BaseException: any error of the work.
    """
    events: queue.SimpleQueue[AnyAdvance | None] = queue.SimpleQueue()
    result: list[T] = []
    failure: list[BaseException] = []
    abandoned = threading.Event()

    def report(event: AnyAdvance) -> None:
        if abandoned.is_set():
            raise AbandonedError(f"{name} was abandoned")
        events.put(event)

    def run() -> None:
        try:
            result.append(work(report))
        except BaseException as error:  # noqa: BLE001 - raised again on the other thread
            failure.append(error)
        finally:
            events.put(None)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    last = 0.0
    try:
        while (event := events.get()) is not None:
            now = time.monotonic()
            # Some report every tensor: ten times a second is enough to watch.
            if event.done in (0, event.total) or now - last > TELL_SECONDS:
                last = now
                yield event
    finally:
        abandoned.set()
        if wait:
            thread.join()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
