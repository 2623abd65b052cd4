"""``qtui attach``: return to an engine that runs."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Annotated

import msgspec
import typer

from engine import protocol as p
from engine.client import attached
from engine.errors import EngineError, UsageError
from engine.profiles import Profile
from engine.report.wording import perplexity, short
from engine.session import Session, running
from engine.store.past_sessions import PastSession, past_sessions
from qtui.cli.exit import print_error, reporting_errors
from qtui.cli.interface import FRAMES, has_terminal
from qtui.cli.options import AsciiOption, FpsOption, NoMouseOption, Shared, ThemeOption
from qtui.cli.progress import put
from qtui.cli.sessions import EVERY_SESSION, named
from qtui.views.progress import about, time_left
from qtui.views.text import printable

EVERY = 60.0
"""Seconds between two lines of ``--watch``."""


def attach(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="a session's name, or its MODEL; not needed if one engine runs"
        ),
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="only look: keys that change something do nothing")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="print a line a minute instead, for a log")
    ] = False,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", help="between two lines of --watch")
    ] = EVERY,
    ascii: AsciiOption = False,
    theme: ThemeOption = None,
    no_mouse: NoMouseOption = False,
    fps: FpsOption = None,
) -> None:
    """Return to an engine that runs, in the terminal interface.

    Leaving the interface while jobs run leaves the engine working. Any number of terminals can be
    attached to it. The engine of a command such as `qtui sweep` can be watched too; it ends with
    that command.
    """
    with reporting_errors():
        session = _running(name)
        if watch:
            if not every > 0:
                raise UsageError(f"--every {every:g}: expected more than 0 seconds")
            _watch(session, every)
            return
        if not has_terminal():
            raise UsageError("no terminal to draw on: --watch prints lines")
        from qtui.startup import interface

        def resolve(profile: str) -> tuple[p.Settings, Profile]:
            settings, chosen = msgspec.structs.replace(Shared(), profile=profile).resolve()
            return settings, msgspec.structs.replace(chosen, fps=fps or chosen.fps)

        os.environ.setdefault("TEXTUAL_FPS", str(FRAMES))
        code = interface(
            session.source, resolve, Shared().profile,
            ascii=ascii, theme=theme, mouse=not no_mouse, asked=False, read_only=read_only,
        )  # fmt: skip
        raise typer.Exit(code)


def _running(name: str | None) -> PastSession:
    """The session to attach to.

    Raises:
        UsageError: there is none, or several and none is named.
    """
    if name is not None:
        return named(name, running=True)
    alive = past_sessions(EVERY_SESSION, only_running=True)
    if len(alive) == 1:
        return alive[0]
    if not alive:
        raise UsageError("no engine is running: `qtui MODEL` starts one (see `qtui sessions`)")
    names = ", ".join(printable(each.name) for each in alive)
    raise UsageError(f"{len(alive)} engines are running: name one of {names}")


def _watch(session: PastSession, every: float) -> None:
    """Print what an engine does, until it ends."""
    engine = attached(session.source)
    if engine is None:
        raise UsageError(f"the engine of {session.name} cannot be attached to: it has no interface")
    next_line = time.monotonic()
    try:
        while True:
            event = engine.receive(min(0.5, every))
            ended = isinstance(event, p.JobEnded) and event.kind != "triage"
            if ended or (time.monotonic() >= next_line and engine.session.source):
                put(typer.get_text_stream("stdout"), line(engine.session) + "\n")
                next_line = time.monotonic() + every
    except EngineError as error:
        print_error(str(error).splitlines()[0])
    finally:
        with suppress(EngineError):
            engine.close()


def line(session: Session) -> str:
    """What an engine does and knows, in one line with the time."""
    said = [time.strftime("%Y-%m-%d %H:%M:%S")]
    if jobs := running(session):
        job = jobs[0]
        said.append(printable(job.title))
        if job.total:
            said.append(f"{job.done:.0f}/{job.total}")
        said += [word for word in (about(job), time_left(job)) if word]
    else:
        said.append("idle")
    if session.baseline is not None:
        said.append(f"PPL {perplexity(session.baseline.ppl)}")
    score = session.score()
    if score is not None and session.changed:
        said.append(f"recipe {perplexity(score.ppl)}, KL·10³ {short(1000 * score.kl)}")
    return "  ".join(said)
