"""Drive an engine to the end of a job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine import protocol as p
from engine.client import Client
from engine.opening.stages import open_job
from engine.store.facts import FactStore
from engine.workspace import Loaded, Opened, Workspace

PATIENCE = 120.0
"""Seconds without any event after which a test gives up."""


def settings(text: Path | None = None, **given: object) -> p.Settings:
    """Small and quick: 16 windows of 32 tokens in micro-batches of 4."""
    chosen: dict[str, object] = {
        "text": str(text) if text else None,
        "tokens": 512,
        "seq_len": 32,
        "batch_tokens": 128,
        "formats": ("int4-g32",),
        "sweep_formats": ("int4-g32",),
    }
    return p.Settings(**{**chosen, **given})  # type: ignore[arg-type]


def open_files(source: Path | str, facts: FactStore, chosen: p.Settings) -> Opened:
    """An open checkpoint, with no engine and no model."""
    workspace = Workspace(facts, chosen)
    for _ in open_job(workspace, str(source), model=False):
        pass
    return workspace.need(Opened)


def load(source: Path | str, facts: FactStore, chosen: p.Settings) -> Loaded:
    """A loaded model, with no engine; what is announced meanwhile is left aside."""
    workspace = Workspace(facts, chosen)
    for _ in open_job(workspace, str(source), model=True):
        pass
    return workspace.need(Loaded)


def until(client: Client, stop: Callable[[p.AnyEvent], bool]) -> list[p.AnyEvent]:
    """Receive events up to and with the first that ``stop`` says yes to."""
    seen: list[p.AnyEvent] = []
    while True:
        event = client.receive(PATIENCE)
        assert event is not None, f"no event for {PATIENCE} s; the last were {seen[-3:]}"
        seen.append(event)
        if stop(event):
            return seen


def ended(kind: str) -> Callable[[p.AnyEvent], bool]:
    """Whether a job of this kind has ended."""
    return lambda event: isinstance(event, p.JobEnded) and event.kind == kind


def sweeps(source: Path, chosen: p.Settings, *asked: p.Sweep) -> list[list[p.AnyEvent]]:
    """Events of several sweeps of one engine, one after the other; all end well."""
    from engine.client import in_process

    client = in_process(str(source))
    found: list[list[p.AnyEvent]] = []
    try:
        client.send(p.Open(str(source), chosen))
        for sweep in asked:
            client.send(sweep)
            found.append(until(client, ended("sweep")))
            last = found[-1][-1]
            assert isinstance(last, p.JobEnded)
            assert last.status == "done", last.message
    finally:
        client.close()
    return found


def figures(events: list[p.AnyEvent]) -> dict[str, p.Sensitivity]:
    """The last figure of every layer or unit, of a sweep in one format."""
    return {f.layer: f for f in facts(events, p.Sensitivity) if isinstance(f, p.Sensitivity)}


def is_partial(event: p.AnyEvent) -> bool:
    """Whether it is a recipe's score, finished or not."""
    return isinstance(event, p.RecipePartial) or (
        isinstance(event, p.Learned) and any(isinstance(f, p.RecipeScore) for f in event.facts)
    )


def facts(events: list[p.AnyEvent], kind: type[p.Fact]) -> list[p.AnyFact]:
    """All facts of one kind that came."""
    return [
        fact
        for event in events
        if isinstance(event, p.Learned)
        for fact in event.facts
        if isinstance(fact, kind)
    ]
