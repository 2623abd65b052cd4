"""Fixes tried by an engine: a planted fault is mended, and nothing is measured twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import protocol as p
from engine.client import InProcess, in_process
from engine.diagnosis.fixes import best_fix, layer_fixes
from engine.session import Session, apply
from tests import planted
from tests.drive import PATIENCE, ended, facts, settings, until


def told(source: Path, text: Path, *commands: p.AnyCommand) -> tuple[Session, list[p.AnyEvent]]:
    """What a session knows after some commands, and the events of the last."""
    session, events = Session(), list[p.AnyEvent]()
    chosen = settings(text, tokens=512, calib=str(text), calib_tokens=256, estimate_formats=())
    client = in_process(str(source))
    try:
        client.send(p.Open(str(source), chosen))
        events = until(client, ended("open"))
        for event in events:
            apply(session, event)
        for command in commands:
            client.send(command)
            kind = "sweep" if isinstance(command, p.Sweep) else "fixes"
            events = until(client, lambda e, kind=kind: ended(kind)(e) or isinstance(e, p.Refused))
            for event in events:
                apply(session, event)
    finally:
        client.close()
    return session, events


def test_a_planted_fault_is_mended_and_its_figures_are_a_sweep_s(
    tmp_path: Path, prose: Path
) -> None:
    source = tmp_path / "llama"
    fault = planted.plant("llama", source)
    ask = p.TryFixes((fault,), planted.FORMAT, forwards=6.0)
    session, events = told(source, prose, ask)
    end = events[-1]
    assert isinstance(end, p.JobEnded)
    assert end.status == "done", end.message
    fixes = layer_fixes(session, fault, planted.FORMAT)
    best = best_fix(fixes, planted.FORMAT, 0.5)
    assert best is not None
    assert best.measured
    assert best.recovered >= 0.5
    assert sum(fix.measured and bool(fix.format) for fix in fixes) <= 7
    tried = [f for f in facts(events, p.FormatTried) if isinstance(f, p.FormatTried)]
    assert tried[0].format == planted.FORMAT  # quick ones first, that itself before all

    # The same measurement as a sweep's: neither is done again.
    swept, events = told(source, prose, p.Sweep((planted.FORMAT,)))
    key = p.EffectKey("degrade", planted.FORMAT)
    row = swept.index[fault]
    assert swept.sensitivity(row, key) == session.sensitivity(row, key)
    again, events = told(source, prose, ask)
    end = events[-1]
    assert isinstance(end, p.JobEnded)
    assert end.measured == 0
    assert repr(layer_fixes(again, fault, planted.FORMAT)) == repr(fixes)  # nan is not nan


def opened_again(source: Path, text: Path, ask: p.AskFixes | None, found: int) -> Session:
    """A session of a new engine, once it knows as many measured effects of formats tried."""
    session = Session()
    chosen = settings(text, tokens=512, calib=str(text), calib_tokens=256, estimate_formats=())
    client = in_process(str(source)) if ask is None else InProcess("another")
    try:
        client.send(p.Open(str(source), chosen))
        while sum(map(_measured, session.effects.measured.values())) < found:
            event = client.receive(PATIENCE)
            assert event is not None
            assert not isinstance(event, p.Refused), event.message
            assert not isinstance(event, p.JobEnded) or event.status == "done", event.message
            apply(session, event)
            if isinstance(event, p.ModelReady) and ask is not None:
                client.send(ask)
    finally:
        client.close()
    return session


def _measured(column: list[p.Sensitivity | None]) -> int:
    return sum(one is not None for one in column)


def test_what_was_measured_is_there_again_after_a_restart_and_in_another_session(
    tmp_path: Path, prose: Path
) -> None:
    source = tmp_path / "llama"
    fault = planted.plant("llama", source)
    before, _ = told(source, prose, p.TryFixes((fault,), planted.FORMAT, forwards=6.0))
    fixes = repr(layer_fixes(before, fault, planted.FORMAT))  # nan is not nan
    measured = sum(map(_measured, before.effects.measured.values()))
    assert measured > 1

    # A new engine of the same session finds it by itself.
    again = opened_again(source, prose, None, measured)
    assert repr(layer_fixes(again, fault, planted.FORMAT)) == fixes

    # One of another session knows nothing of it, until it is asked.
    other = opened_again(source, prose, p.AskFixes((fault,), planted.FORMAT), measured)
    assert repr(layer_fixes(other, fault, planted.FORMAT)) == fixes


def test_without_names_the_worst_layers_are_tried(tmp_path: Path, prose: Path) -> None:
    source = tmp_path / "llama"
    fault = planted.plant("llama", source)
    sweep = p.Sweep((planted.FORMAT,), exact="top:1")
    ask = p.TryFixes(format=planted.FORMAT, worst=1, forwards=1.0)
    session, events = told(source, prose, sweep, ask)
    assert list(session.fixes) == [fault]
    started = next(event for event in events if isinstance(event, p.JobStarted))
    assert isinstance(started.command, p.TryFixes)
    assert started.command.layers == (fault,)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (p.TryFixes(), "sweep first"),
        (p.TryFixes(("nowhere",)), "no layer 'nowhere'"),
        (p.TryFixes(forwards=0.0), "more than 0"),
    ],
)
def test_what_cannot_be_tried_is_refused_at_once(
    ask: p.TryFixes, says: str, tmp_path: Path, prose: Path
) -> None:
    source = tmp_path / "llama"
    planted.plant("llama", source)
    _, events = told(source, prose, ask)
    refused = events[-1]
    assert isinstance(refused, p.Refused)
    assert says in refused.message
