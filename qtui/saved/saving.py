"""Save what the workbench shows: any table, plot, recipe or the screen, by the ending of a path.

An existing file is not replaced: the next free name is used (``demo-2.csv``) and reported; ``!``
after the path replaces it. Every file contains the command that reproduces it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import cast

import msgspec

from engine.errors import UsageError
from engine.report.documents import report_document
from engine.report.report_forms import REPORT_FORMS
from engine.report.reproduce import command, commands
from engine.store.files import write_new, write_whole
from engine.store.paths import session_name
from qtui.saved.forms import aligned, as_csv, as_json, as_text
from qtui.saved.layers import in_a_picture
from qtui.saved.plots import histogram_svg
from qtui.saved.recipe import recipe_toml
from qtui.saved.request import read_request
from qtui.saved.subjects import Form
from qtui.saved.svg import plain_lines, screen_svg, text_of
from qtui.saved.tables import table_of, why_not
from qtui.saved.target import target_path
from qtui.saved.view import Subject, View
from qtui.views.text import printable

HISTOGRAMS = 9
"""Histograms in a report, those shown last."""


class Saved(msgspec.Struct, frozen=True):
    """A file that was written."""

    path: Path
    what: str
    """What is in it, in a few words."""
    command: str
    """The command that reproduces it."""

    @property
    def says(self) -> str:
        """A sentence for a person."""
        return f"saved {self.what} to {printable(str(self.path))}"


def save(subject: Subject, path: str, view: View, *, replace: bool = False) -> Saved:
    """Save a subject, in the form the path's ending names.

    Args:
        subject: what to save.
        path: where; ``~`` is the home folder, a folder means the suggested name in it.
        view: what is shown.
        replace: overwrite a file of that name; otherwise the next free name is used.

    Raises:
        UsageError: the path cannot be written, its ending is unknown, or there is nothing of that
            kind; the message says what to do.
    """
    target = target_path(subject, path, view)
    if reason := why_not(subject, view):
        raise UsageError(reason)
    made: list[tuple[str, str]] = []

    def content(final: Path) -> bytes:
        data, what, again = _content(subject, final, view)
        made.append((what, again))
        return data

    try:
        if replace:
            write_whole(target, content(target))
            written = target
        else:
            written = write_new(target, content)
    except OSError as error:
        raise UsageError(
            f"{printable(str(target))}: cannot be written: {error.strerror or error}"
        ) from error
    what, again = made[-1]
    return Saved(written, what, again)


def save_asked(text: str, view: View) -> Saved:
    """Save what was typed at the prompt: ``[SUBJECT] PATH[!]``.

    Raises:
        UsageError: as `save`.
    """
    asked = read_request(text, view)
    return save(asked.subject, asked.path, view, replace=asked.replace)


def _content(subject: Subject, path: Path, view: View) -> tuple[bytes, str, str]:
    """What is written, what it is in a few words, and the command that gives it again."""
    form = cast(Form, path.suffix.lower())
    if subject == "recipe":
        text, again = recipe_toml(view, path)
        layers = _counted(len(view.session.changed), "changed layer")
        return text.encode(), f"the recipe of {layers}", again
    if subject == "report":
        again = command(view.session.settings, view.source, "open")
        return _report(form, view), "the report", again
    if subject == "screen":
        again = command(view.session.settings, view.source, "open")
        if form == ".txt":
            return f"{text_of(view.screen)}\n\n{again}\n".encode(), "the screen", again
        drawn = screen_svg(
            view.screen, title=f"qtui {view.source}", command=again, palette=view.palette
        )
        return drawn.encode(), "the screen", again
    table = table_of(subject, view)
    if subject == "table" and form == ".svg":
        table = in_a_picture(view)
    found = view.session.histograms.get(view.layer or "") if subject == "histogram" else None
    as_svg: Callable[[], str] = (
        (lambda: screen_svg(
            plain_lines("\n".join([printable(table.title), "", *aligned(table)])),
            title=table.title, command=table.command, palette=view.palette,
        ))
        if found is None
        else (lambda: histogram_svg(
            found, title=printable(table.title), command=table.command, palette=view.palette
        ))
    )  # fmt: skip
    match form:
        case ".csv":
            data = as_csv(table).encode()
        case ".json":
            data = as_json(table, view.session, found)
        case ".svg":
            data = as_svg().encode()
        case _:
            data = as_text(table).encode()
    what = f"the {subject}" if subject != "table" else _counted(len(table.rows), "row")
    return data, what, table.command


def _report(form: Form, view: View) -> bytes:
    session = view.session
    document = report_document(
        session,
        session_name(view.source),
        datetime.now().astimezone().isoformat(timespec="seconds"),
        format=view.format,
        commands=commands(session),
        histograms=list(session.histograms.values())[-HISTOGRAMS:],
        serving=view.serving,
    )
    return REPORT_FORMS[form](document)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
