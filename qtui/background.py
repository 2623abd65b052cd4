"""Run blocking work (disk, network) in a thread, so that the screen never waits."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Run ``work`` in a thread that is not joined when qtui ends; returns or raises as it does.

    A folder on an unreachable server can block a thread for minutes. The threads of asyncio's own
    pool are joined at exit, which would then block too.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(set_it: Callable[[], None]) -> None:
        if not done.done():
            set_it()

    def run() -> None:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - raised again where the result is awaited
            failed = error
            deliver(lambda: done.set_exception(failed))
        else:
            deliver(lambda: done.set_result(result))

    def deliver(set_it: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is waiting any more
            loop.call_soon_threadsafe(settle, set_it)

    threading.Thread(target=run, daemon=True).start()
    return await done
