"""``qtui sessions``, ``qtui stop``: engines that run, and past sessions."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
import typer
from msgspec import UNSET

from engine.client.running import Engine, look
from engine.client.running import stop as stop_engine
from engine.errors import UsageError
from engine.report import schema as s
from engine.report.characters import printable
from engine.report.json import finite
from engine.report.tables.layout import table
from engine.report.wording import clock, perplexity, size
from engine.session import Job
from engine.store.past_sessions import PastSession, past_sessions
from engine.store.paths import session_name
from qtui.cli.exit import check_destination, print_error, publish, reporting_errors
from qtui.cli.options import JsonOption
from qtui.views.text import ago

EVERY_SESSION = 1_000_000
"""As many as there are: one that runs may be old."""
HEADINGS = ("session", "state", "does", "measured", "PPL", "memory", "last used")


def sessions(json: JsonOption = None) -> None:
    """Engines that run, and past sessions.

    What each engine does, how far it is, and the memory it holds; of past sessions what was
    measured. `qtui attach NAME` shows one again, `qtui stop NAME` ends its engine.
    """
    with reporting_errors():
        check_destination(json)
        found = [_entry(each) for each in past_sessions()]
        found.sort(key=lambda each: each.state == "past")
        publish(s.SessionsDocument(sessions=found), sessions_text, json)


def stop(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="a session's name, or the MODEL it is about")
    ],
) -> None:
    """Stop a session's engine, whoever is attached to it.

    Its jobs end; what they measured is saved, and a sweep goes on where it stopped when it is asked
    for again.
    """
    with reporting_errors():
        session = named(name, running=True)
        pid = stop_engine(session.name)
        print_error(f"the engine of {session.name} (process {pid}) has ended; results are saved")


def named(given: str, *, running: bool = False) -> PastSession:
    """The session of a name, or of a checkpoint.

    Args:
        given: what was typed.
        running: whether it must have an engine.

    Raises:
        UsageError: there is none; the message names those there are.
    """
    if running:  # so that old sessions need not be read
        for each in past_sessions(EVERY_SESSION, only_running=True):
            if each.name in (given, session_name(given)):
                return each
    known = {each.name: each for each in past_sessions(EVERY_SESSION)}
    found = known.get(given) or known.get(session_name(given))
    alive = [each.name for each in known.values() if each.running]
    there = ", ".join(map(printable, alive)) or "none"
    if found is None:
        raise UsageError(f"no session {given!r}; engines that run: {there} (see `qtui sessions`)")
    if running and not found.running:
        again = f"`qtui {found.source}` opens it again; " if found.source else ""
        raise UsageError(f"no engine of {found.name} runs: {again}engines that run: {there}")
    return found


def _entry(session: PastSession) -> s.SessionPart:
    engine = look(session.name) if session.running else None
    return s.SessionPart(
        name=session.name,
        source=session.source,
        state=_state(engine),
        job=_job(engine.jobs[0]) if engine is not None and engine.jobs else UNSET,
        waiting=max(0, len(engine.jobs) - 1) if engine is not None else 0,
        pid=engine.pid if engine is not None else UNSET,
        memory_bytes=engine.bytes if engine is not None else UNSET,
        layers=session.layers,
        measured=session.measured,
        changed=session.changed,
        ppl=finite(session.ppl_reference),
        ppl_recipe=finite(session.ppl_recipe),
        last_used=session.when,
        problem=session.problem or UNSET,
    )


def _state(engine: Engine | None) -> s.SessionState:
    if engine is None:
        return "past"
    if engine.of_run or not engine.answers:
        return "headless"
    return "working" if engine.jobs else "idle"


def _job(job: Job) -> s.SessionJob:
    return s.SessionJob(
        title=job.title,
        done=finite(job.done),
        total=job.total,
        seconds_left=finite(job.seconds_left),
    )


def sessions_text(document: s.SessionsDocument) -> str:
    """A table, engines first."""
    if not document.sessions:
        return "no sessions yet: `qtui demo` or `qtui MODEL` begins one\n"
    now = time.time()
    rows = [_row(each, now) for each in document.sessions]
    problems = [
        f"{printable(each.name)}: {printable(each.problem)}"
        for each in document.sessions
        if not isinstance(each.problem, msgspec.UnsetType)
    ]
    return "\n".join([table(HEADINGS, rows, {0, 1, 2}), *problems, ""])


def _row(each: s.SessionPart, now: float) -> tuple[str, ...]:
    memory = each.memory_bytes
    return (
        printable(each.name),
        each.state,
        _does(each),
        f"{each.measured:,} of {each.layers:,}" if each.layers else "-",
        "-" if each.ppl is None else perplexity(each.ppl),
        "-" if isinstance(memory, msgspec.UnsetType) else size(memory),
        ago(now - each.last_used),
    )


def _does(each: s.SessionPart) -> str:
    job = each.job
    if isinstance(job, msgspec.UnsetType):
        return "-"
    said = printable(job.title)
    if job.total and job.done is not None:
        said += f" {job.done / job.total:.0%}"
    if job.seconds_left is not None:
        said += f", {clock(job.seconds_left)} left"
    return said + (f", {each.waiting} more" if each.waiting else "")
