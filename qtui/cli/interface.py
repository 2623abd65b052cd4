"""``qtui MODEL`` and ``qtui demo``: the terminal interface."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import msgspec
import typer

from engine import protocol as p
from engine.client import start_ahead
from engine.errors import UsageError
from engine.profiles import Profile
from qtui.cli.exit import reporting_errors
from qtui.cli.options import (
    AsciiOption,
    FpsOption,
    NoMouseOption,
    Shared,
    ThemeOption,
    WorkersOption,
    located_model,
    shares_options,
    with_workers,
)
from qtui.views.text import printable


@shares_options
def open_model(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="demo, a folder, a .gguf file, or a hub id"),
    ] = None,
    ascii: AsciiOption = False,
    theme: ThemeOption = None,
    no_mouse: NoMouseOption = False,
    fps: FpsOption = None,
    workers: WorkersOption = None,
    *,
    shared: Shared,
) -> None:
    """Open MODEL in the terminal interface; without MODEL, its start screen."""
    with reporting_errors():
        _show(
            model, shared, ascii=ascii, theme=theme, fps=fps, mouse=not no_mouse, workers=workers
        )  # fmt: skip


@shares_options
def demo(
    ascii: AsciiOption = False,
    theme: ThemeOption = None,
    no_mouse: NoMouseOption = False,
    fps: FpsOption = None,
    workers: WorkersOption = None,
    *,
    shared: Shared,
) -> None:
    """Open the bundled checkpoint in the terminal interface."""
    with reporting_errors():
        _show(
            "demo", shared, ascii=ascii, theme=theme, fps=fps, mouse=not no_mouse, workers=workers
        )  # fmt: skip


FRAMES = 120
"""Frames a second at most: those of keys; results are shown ``fps`` times a second."""


def _show(
    model: str | None,
    shared: Shared,
    *,
    ascii: bool,
    theme: str | None,
    fps: int | None,
    mouse: bool,
    workers: str | None,
) -> None:
    def resolve(name: str) -> tuple[p.Settings, Profile]:
        settings, profile = msgspec.structs.replace(shared, profile=name).resolve()
        settings = with_workers(settings, workers)
        return settings, msgspec.structs.replace(profile, fps=fps or profile.fps)

    _, profile = resolve(shared.profile)
    if not has_terminal():
        name = "MODEL" if model is None else printable(model)
        raise UsageError(
            f"no terminal to draw on: use `qtui triage {name}`, `qtui sweep {name}` or "
            f"`qtui eval {name} --format F`"
        )
    source = None if model is None else located_model(model)
    # The engine imports its libraries while the first frame is drawn.
    started = (
        None
        if source is None
        else start_ahead(source, nice=profile.nice, idle=profile.idle_minutes)
    )
    # A key waits for the next frame; Textual reads this once. Only what changed is drawn and sent.
    os.environ.setdefault("TEXTUAL_FPS", str(FRAMES))
    try:
        from qtui.startup import interface

        code = interface(
            source, resolve, shared.profile,
            ascii=ascii, theme=theme, mouse=mouse, started=started,
            asked=shared != Shared() or workers is not None,
        )  # fmt: skip
    except BaseException:
        if started is not None:
            started.terminate()
        raise
    raise typer.Exit(code)


def has_terminal() -> bool:
    """Whether there is a terminal to draw on."""
    return sys.stdout.isatty() and sys.stdin.isatty()
