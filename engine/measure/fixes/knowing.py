"""A job's own session: what it has learnt so far, while other threads change the engine's."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from engine import protocol as p
from engine.session import Session, apply
from engine.workspace import Opened

E = TypeVar("E")
T = TypeVar("T")


def fresh_session(opened: Opened) -> Session:
    """A session that knows the layers of a checkpoint and nothing else."""
    session = Session()
    apply(session, opened.listed())
    session.layers.tied = opened.tied
    session.source, session.settings = str(opened.path), opened.settings
    session.checkpoint = opened.read()
    return session


def followed(session: Session, steps: Generator[E, None, T]) -> Generator[E, None, T]:
    """The same steps; what they learn is folded into a session."""
    try:
        while True:
            try:
                event = next(steps)
            except StopIteration as stop:
                found: T = stop.value
                return found
            if isinstance(event, p.Learned | p.Agreement):
                apply(session, event)
            yield event
    finally:
        steps.close()
