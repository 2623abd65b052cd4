"""An engine in this process: no socket unless asked for, and no global setting changes.

Logging, threads and the garbage collector are left alone. A process that does nothing else calls
`own_process` first.
"""

from __future__ import annotations

import importlib
import queue
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engine import protocol as p
from engine.client.log import log_to_file
from engine.errors import EngineError
from engine.service import process
from engine.session import Session, apply
from engine.store.beside import folder_beside
from engine.store.paths import (
    StateFolderError,
    check_state_folder,
    facts_file,
    session_folder,
    session_name,
)

if TYPE_CHECKING:
    from engine.store.facts import FactStore
    from engine.store.journal import Journal

TICK = 0.2
"""Seconds to wait for an event at a time, so that the wait can be interrupted."""


class Client(Protocol):
    """A blocking interface to an engine, for headless runs and tests."""

    session: Session
    """The session, folded from the received events."""

    def send(self, command: p.AnyCommand) -> None:
        """Send a command to the engine."""

    def receive(self, timeout: float | None = None) -> p.AnyEvent | None:
        """The next event, already folded into ``session``; None on timeout."""

    def close(self) -> None:
        """Detach; results are saved."""


class JobError(EngineError):
    """A command was refused, or its job failed or was cancelled; has the engine's exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code or 1


class InProcess:
    """An engine in this process, with the same commands and events."""

    def __init__(self, name: str | None, *, serve: bool = False, patience: float = 0.0) -> None:
        """
        Args:
            name: of the session; None for one that is not saved. While another process has it
                open, this engine has one of its own beside it, and both share all facts.
            serve: whether others can attach to it, unless it has a session of its own.
            patience: seconds to wait for a process that is about to close the session.

        Raises:
            StateFolderError: nothing can be saved.
        """
        from engine.store.database import IN_MEMORY
        from engine.store.facts import FactStore

        if name is not None:
            check_state_folder()
        facts = FactStore(IN_MEMORY if name is None else facts_file())
        self._beside: Path | None = None
        """The folder of a session of its own, deleted at the end."""
        try:
            journal = self._journal(name, facts, patience)
        except BaseException:
            facts.close()
            raise
        self._serving: Any = None
        self._events: queue.SimpleQueue[tuple[int, p.AnyEvent]] = queue.SimpleQueue()
        # By name, so that importing this module never imports the engine.
        service = importlib.import_module("engine.service.engine")
        self.session = journal.fold()
        try:
            self._engine: Any = service.Engine(journal, facts, self._take)
        except BaseException:
            journal.close()
            facts.close()
            raise
        self._serve_as = name if serve and not self.beside else None
        """The session to serve once it is being opened, so that nobody else opens it."""

    def _journal(self, name: str | None, facts: FactStore, patience: float) -> Journal:
        from engine.store.journal import Journal
        from engine.store.lock import SessionBusyError

        if name is None:
            return Journal(None, facts)
        with suppress(SessionBusyError):
            return Journal(session_folder(name), facts, patience)
        self._beside = folder_beside(name)
        return Journal(self._beside, facts)

    @property
    def beside(self) -> bool:
        """Whether another process has the session open, so that this one has its own."""
        return self._beside is not None

    def _take(self, seq: int, event: p.AnyEvent) -> None:
        # Others first: this process may end on what it is told.
        if self._serving is not None:
            self._serving.announce(seq, event)
        self._events.put((seq, event))

    def send(self, command: p.AnyCommand) -> None:
        """Send a command to the engine."""
        self.start(command)

    def start(self, command: p.AnyCommand) -> str | None:
        """Send a command to the engine; returns the id of the job that it started, if any.

        A refusal arrives as an event with the command's ``ask``.
        """
        command = p.identified(command)
        job: str | None = self._engine.handle(command, lambda refused: self._take(0, refused))
        if self._serve_as is not None:
            name, self._serve_as = self._serve_as, None
            serving = importlib.import_module("engine.client.serving")
            self._serving = serving.Serving(name, self._engine)
        return job

    def receive(self, timeout: float | None = None) -> p.AnyEvent | None:
        """The next event, already folded into ``session``; None on timeout."""
        try:
            seq, event = self._events.get(timeout=timeout)
        except queue.Empty:
            return None
        apply(self.session, event, seq)
        return event

    def run(self, command: p.AnyCommand) -> Iterator[p.AnyEvent]:
        """Run one command, yielding every event until its job has ended.

        Events of other jobs running meanwhile are included. Leaving early (``close`` of this
        iterator, or a break out of its loop) cancels the job. A command without a job, such as
        opening a checkpoint that is open or a change that changes nothing, ends at once.

        Raises:
            JobError: it was refused, or its job failed or was cancelled.
        """
        command = p.identified(command)
        job = self.start(command)
        running = job is not None
        try:
            while (event := self.receive(TICK if running else 0.0)) is not None or running:
                if event is None:
                    continue
                yield event
                match event:
                    case p.Refused(ask=command.ask):
                        running = False
                        raise JobError(event.message, event.exit_code)
                    case p.JobEnded(job=ended) if ended == job:
                        running = False
                        if event.status != "done":
                            message = event.message or f"{event.kind} was {event.status}"
                            raise JobError(message, event.exit_code)
                        return
        finally:
            if running:
                self._engine.handle(p.Cancel(str(job)), lambda refused: None)

    def close(self) -> None:
        """Stop every job and close the journal; results are saved."""
        # Before the session is unlocked: the next engine has the same socket.
        if self._serving is not None:
            self._serving.close()
        self._engine.close()
        if self._beside is not None:
            shutil.rmtree(self._beside, ignore_errors=True)


def in_process(
    source: str,
    *,
    unsaved: Callable[[str], None] | None = None,
    serve: bool = False,
    patience: float = 0.0,
) -> InProcess:
    """Run an engine for the source's session in this process.

    If another process has the session open, the engine has a session of its own.

    Args:
        source: ``demo``, a folder, or a hub id.
        unsaved: called with a sentence if nothing can be saved, before a session that is not saved
            is run; None does not run one.
        serve: whether others can attach to it over a socket; who asks it to stop sends SIGTERM to
            this process. For a process that does nothing else.
        patience: seconds to wait for a process that is about to close the session.

    Raises:
        StateFolderError: nothing can be saved.
    """
    try:
        return InProcess(session_name(source), serve=serve, patience=patience)
    except StateFolderError as error:
        if unsaved is None:
            raise
        unsaved(f"{error}; this run is not saved")
        return InProcess(None)


def own_process(source: str) -> None:
    """Set this process up for `in_process` alone, as the command line does.

    The log goes to the session's file, threads leave room for other processes, and the garbage
    collector is off while libraries are imported. Do not call it in a notebook or another program.
    """
    process.own_process()
    with suppress(StateFolderError):  # `in_process` says so, if it matters
        log_to_file(session_name(source))
