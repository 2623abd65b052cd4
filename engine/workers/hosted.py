"""A worker in a process of a cluster: an engine that saves nothing, as an actor of Ray.

Nothing of Ray is imported here. `engine.workers.bridge` makes it an actor.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator

from engine import protocol as p
from engine.errors import EngineError
from engine.service.process import own_process
from engine.service.wire import frame


class Hosted:
    """Runs commands one after the other; events leave as bytes, those of a moment together."""

    def __init__(self, wire: int, threads: int | None) -> None:
        """
        Args:
            wire: version of the messages that the engine sends.
            threads: of the processor; None leaves what the environment says.

        Raises:
            EngineError: messages have another version here.
        """
        if wire != p.WIRE_VERSION:
            raise EngineError(
                f"its messages have version {p.WIRE_VERSION} instead of {wire}: install the same "
                "version of qtui everywhere"
            )
        if threads is not None:  # Ray has set it for the processors that it counts
            os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
        own_process()
        from engine.client.in_process import InProcess
        from engine.workers.serving import Outlet

        self._engine = InProcess(None)
        self._sent: queue.SimpleQueue[bytes | BaseException | None] = queue.SimpleQueue()
        self._outlet = Outlet(lambda *messages: self._sent.put(b"".join(map(frame, messages))))

    def run(self, command: bytes) -> Iterator[bytes]:
        """Run an encoded command; yields frames of its events as they are on the wire."""
        threading.Thread(target=self._run, args=(p.decode_frame(command),), daemon=True).start()
        while (sent := self._sent.get()) is not None:
            if isinstance(sent, BaseException):
                raise sent
            yield sent

    def _run(self, command: p.AnyCommand) -> None:
        from engine.client.in_process import JobError

        ended: BaseException | None = None
        try:
            for event in self._engine.run(command):
                self._outlet.send(event)
        except JobError:
            pass  # sent as an event, as all others
        except BaseException as error:  # noqa: BLE001  (the actor's own thread raises it)
            ended = error
        self._sent.put(ended)
