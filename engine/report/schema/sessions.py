"""The document of `qtui sessions`."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import UNSET, UnsetType

from engine.report.schema.parts import Number, Part

SessionState: TypeAlias = Literal["working", "idle", "headless", "past"]
"""What a session's engine does: it has jobs; it has none; it is a command without an interface;
there is no engine."""


class SessionJob(Part, frozen=True, kw_only=True):
    """What an engine does."""

    title: str
    done: Number
    total: int
    """In units of the job; 0 where it is not known."""
    seconds_left: Number


class SessionPart(Part, frozen=True, kw_only=True):
    """A session."""

    name: str
    source: str
    """What it has open: ``demo``, a folder, or a hub id."""
    state: SessionState
    job: SessionJob | UnsetType = UNSET
    """The most urgent of its jobs."""
    waiting: int
    """Its other jobs."""
    pid: int | UnsetType = UNSET
    memory_bytes: int | UnsetType = UNSET
    """Resident memory of its engine."""
    layers: int
    measured: int
    """Layers whose effect was measured in some format."""
    changed: int
    """Layers that its recipe quantises."""
    ppl: Number
    """Of the unchanged model."""
    ppl_recipe: Number
    last_used: float
    """Seconds since 1970."""
    problem: str | UnsetType = UNSET
    """Why it cannot be opened again."""


class SessionsDocument(Part, frozen=True, kw_only=True, tag_field="schema", tag="qtui.sessions/1"):
    """Engines that run, and past sessions."""

    sessions: list[SessionPart]
