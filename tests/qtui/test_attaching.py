"""What the interface asks of an engine that it attaches to."""

from __future__ import annotations

import msgspec

from engine import protocol as p
from engine.session import Session, apply
from qtui.app import Appearance, QtuiApp
from qtui.attaching import lacking
from qtui.widgets.frame.scoreboard import Scoreboard
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving

OPENED = p.Opened("demo", r.SETTINGS, {})
OPEN, TRIAGE, SWEEP = p.Open("demo", r.SETTINGS), p.Triage(), p.Sweep()


def session(*events: p.AnyEvent) -> Session:
    found = Session()
    for event in (OPENED, *events):
        apply(found, event)
    return found


def started(job: str, command: p.Command) -> p.JobStarted:
    return p.JobStarted(job=job, kind=type(command).__name__.lower(), title="", command=command)


def ended(job: str, status: p.JobStatus) -> p.JobEnded:
    return p.JobEnded(job=job, kind="", status=status)


ALL = (
    started("1", OPEN),
    started("2", p.Triage(r.SETTINGS.formats)),
    started("3", p.Sweep(r.SETTINGS.sweep_formats)),
)


def asked(found: Session, settings: p.Settings = r.SETTINGS) -> list[p.Command]:
    return lacking(found, "demo", settings)


def test_an_engine_that_started_just_now_is_asked_for_everything() -> None:
    assert asked(Session()) == [OPEN, TRIAGE, SWEEP]
    assert asked(session()) == [OPEN, TRIAGE, SWEEP]


def test_what_runs_or_is_done_is_not_asked_for_again() -> None:
    assert asked(session(*ALL)) == []
    assert asked(session(*ALL, *(ended(job, "done") for job in "123"))) == []


def test_what_failed_or_was_cancelled_is_asked_for_again() -> None:
    assert asked(session(*ALL, ended("1", "failed"))) == [OPEN]
    assert asked(session(*ALL, ended("2", "cancelled"))) == [TRIAGE]
    assert asked(session(*ALL, ended("3", "cancelled"))) == [SWEEP]


def test_a_sweep_of_something_else_is_not_the_one_that_is_wanted() -> None:
    formats = r.SETTINGS.sweep_formats
    for other in (
        p.Sweep(("int8",)),
        p.Sweep(formats, direction="restore"),
        p.Sweep(formats, exact="none"),
        p.Sweep(formats, by="block"),
    ):
        assert asked(session(*ALL[:2], started("3", other))) == [SWEEP]
    more = p.Sweep(("int8", *formats))
    assert asked(session(*ALL[:2], started("3", more))) == []


def test_an_engine_with_other_settings_is_asked_to_open_so_that_it_says_so() -> None:
    assert asked(session(*ALL), msgspec.structs.replace(r.SETTINGS, tokens=1024)) == [
        p.Open("demo", msgspec.structs.replace(r.SETTINGS, tokens=1024))
    ]


async def test_attaching_to_an_engine_that_is_busy_asks_for_nothing() -> None:
    known = session(*ALL)
    link = r.Replay(session=known)

    async def connect() -> r.Replay:
        return link

    app = QtuiApp("demo", r.SETTINGS, r.PROFILE, connect, Appearance(theme="qtui-dark"))
    async with app.run_test() as pilot:
        d = Driver(app, pilot, link)
        await d.until(lambda: app.session is known and link.heard())
        assert not d.sent(p.Open)
        assert not d.sent(p.Triage)
        assert not d.sent(p.Sweep)


async def test_what_is_said_once_the_work_that_ran_at_attaching_is_done() -> None:
    link = r.Replay(session=r.folded(*r.opening(), started("7", p.Triage())))

    async def connect() -> r.Replay:
        return link

    app = QtuiApp("demo", r.SETTINGS, r.PROFILE, connect, Appearance(theme="qtui-dark"))
    async with app.run_test(size=(80, 24)) as pilot:
        d = Driver(app, pilot, link)
        await d.until(link.heard)
        await d.give(ended("7", "done"))
        assert app.screen.query_one(Scoreboard).state == "ready"


async def test_only_the_refusal_of_a_sweep_that_nobody_asked_for_is_silent() -> None:
    async with driving(*r.opening()) as d:
        said = "that sweep is running already"
        await d.until(lambda: d.sent(p.Sweep))
        notices = len(d.app.session.notices)
        d.link.give(p.Refused("Sweep", said, ask=d.ask(p.Sweep)))
        await d.until(d.link.heard)
        assert len(d.app.session.notices) == notices
        await d.give(p.Refused("Sweep", said, ask="of a key"))
        assert d.app.session.notices[-1].message == said
        d.link.give(p.Refused("Sweep", said, ask=d.ask(p.Sweep)))
        await d.until(d.link.heard)
        assert len(d.app.session.notices) == notices + 1
