"""Save what the workbench shows: any table, plot, recipe or the screen, by the ending of a path.

A file that is there is never replaced unasked: the next free name is taken (``demo-2.csv``) and
said. Who wants it replaced writes ``!`` behind the path. Whatever is saved carries the command
that gives it again.

What is typed is ``[SUBJECT] PATH[!]``. A path may have blanks in it; where its first word could be
taken for a subject it stands in quotes, or after the subject: ``"tables of May.csv"``, ``table
tables of May.csv``.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias, cast

import msgspec

from engine.errors import UsageError
from engine.protocol import EffectKey
from engine.report.numbers import size
from engine.store.files import free_name, write_new, write_whole
from qtui.saved.forms import aligned, as_csv, as_json, as_text
from qtui.saved.plots import histogram_svg
from qtui.saved.recipe import recipe_toml
from qtui.saved.svg import plain_lines, screen_svg, text_of
from qtui.saved.tables import table_of, why_not
from qtui.saved.view import SUBJECTS, Subject, View
from qtui.views.reproduce import command
from qtui.views.text import printable

__all__ = [
    "Saved", "Subject", "View", "complete_path", "judge_path", "save", "save_asked", "subjects",
]  # fmt: skip

Form: TypeAlias = Literal[".csv", ".json", ".svg", ".txt", ".toml"]
FORM_WORDS: dict[Form, str] = {
    ".csv": "comma-separated, full precision",
    ".json": "one document, full precision",
    ".svg": "a picture whose text is text",
    ".txt": "aligned text",
    ".toml": "a recipe file",
}
_TABLE: tuple[Form, ...] = (".csv", ".json", ".svg", ".txt")
FORMS: dict[Subject, tuple[Form, ...]] = {
    "table": _TABLE,
    "histogram": _TABLE,
    "layer": _TABLE,
    "experts": _TABLE,
    "log": (".txt", ".csv", ".json", ".svg"),
    "screen": (".svg", ".txt"),
    "recipe": (".toml",),
}
"""Forms of every subject; the first is the one of its suggested name."""
QUOTES = ('"', "'")
LISTED = 50
"""Entries of a folder that are offered at once."""
MOST_DRAWN = 2000
"""Rows of a table in a picture: with more of them no viewer opens it."""


class Saved(msgspec.Struct, frozen=True):
    """A file that was written."""

    path: Path
    what: str
    """What is in it, in a few words."""
    command: str
    """The command that gives it again."""

    @property
    def says(self) -> str:
        """A sentence for a person."""
        return f"saved {self.what} to {printable(str(self.path))}"


class Request(msgspec.Struct, frozen=True):
    """What was typed."""

    subject: Subject
    path: str
    replace: bool = False


def save(subject: Subject, path: str, view: View, *, replace: bool = False) -> Saved:
    """Save a subject, in the form the path's ending names.

    Args:
        subject: what to save.
        path: where; ``~`` is the home folder, a folder stands for the suggested name in it.
        view: what is shown.
        replace: put it in place of a file of that name; otherwise the next free name is taken.

    Raises:
        UsageError: the path cannot be written, its ending is unknown, or there is nothing of that
            kind; the message says what to do.
    """
    target = _target(subject, path, view)
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


def read_request(text: str, view: View) -> Request:
    """``[SUBJECT] PATH[!]`` as its parts.

    With no subject a ``.toml`` is the recipe and anything else the table; with no path it is the
    suggested name. Quotes around the path are taken off; one that is not closed may be left open.

    Raises:
        UsageError: the first of several words is like a subject and is none.
    """
    text = text.strip()
    first, _, rest = text.partition(" ")
    subject: Subject | None = None
    if first in SUBJECTS:
        subject, text = first, rest.strip()
    elif meant := _misspelt(text):
        raise UsageError(
            f"{printable(first)}: there is nothing of that name to save: did you mean {meant}? "
            "If it begins a file's name, put the name in quotes"
        )
    path = text.removesuffix("!").rstrip()
    replace = text.endswith("!")
    if path[:1] in QUOTES:
        path = path[1:].removesuffix(path[0])
    if subject is None:
        subject = "recipe" if path.lower().endswith(".toml") else "table"
    return Request(subject, path or suggested(subject, view), replace)


def _misspelt(text: str) -> Subject | None:
    """The subject that the first of several words is like, where it is none itself."""
    first, _, rest = text.strip().partition(" ")
    if first in SUBJECTS or not rest.strip() or first[:1] in QUOTES:
        return None
    word = first.lower()
    close = difflib.get_close_matches(word, SUBJECTS, n=1, cutoff=0.7)
    for subject in SUBJECTS:
        if (len(word) > 2 and subject.startswith(word)) or subject in close:
            return subject
    return None


def subjects(view: View) -> list[tuple[Subject, str, str]]:
    """What can be saved: subject, suggested name, and why it cannot be now (empty where it can)."""
    return [(each, suggested(each, view), why_not(each, view)) for each in SUBJECTS]


def suggested(subject: Subject, view: View) -> str:
    """A file name: ``demo-sweep-int4-g128.csv``."""
    session = view.session
    name = session.checkpoint.name if session.checkpoint is not None else view.source
    parts = [name.rstrip("/").rsplit("/", 1)[-1]]
    key = EffectKey(view.direction, view.format)
    if subject == "table":
        swept = key in session.effects.measured or key in session.effects.estimated
        way = "sweep" if view.direction == "degrade" else view.direction
        parts += [way, view.format] if swept else ["triage"]
    elif subject in ("histogram", "layer", "experts"):
        parts += [(view.layer or "").removeprefix("model."), subject]
    else:
        parts.append(subject)
    slug = "-".join(re.sub(r"[^\w.+=,-]+", "-", part).strip("-.") for part in parts if part)
    # A name of a file holds 255 bytes, and needs room for a number.
    return slug.encode()[:200].decode(errors="ignore") + FORMS[subject][0]


def complete_path(text: str, view: View) -> list[tuple[str, str, bool]]:
    """Completions of what is being typed, as ``(text, says, dim)``; dim is what cannot be now."""
    first, space, rest = text.lstrip().partition(" ")
    found: list[tuple[str, str, bool]] = []
    if not space:
        for subject, name, reason in subjects(view):
            if subject.startswith(first):
                forms = " ".join(FORMS[subject])
                found.append((f"{subject} {name}", reason or forms, bool(reason)))
        if not first:
            return found
    if meant := _misspelt(text):
        return [(f"{meant} {rest.strip()}", f"{printable(first)} is nothing to save", False)]
    named = space and first in SUBJECTS
    lead, typed = (f"{first} ", rest.lstrip()) if named else ("", text.strip())
    quote = typed[:1] if typed[:1] in QUOTES else ""
    typed = typed.removeprefix(quote)
    asked = read_request(text, view)
    if typed:
        for path, says in _paths(typed, asked.subject):
            before = quote or ('"' if not lead and _misspelt(path) else "")
            # Within a folder the typing goes on: its quote is not closed.
            after = "" if path.endswith("/") else before
            found.append((f"{lead}{before}{path}{after}", says, False))
    return found


def judge_path(text: str, view: View) -> tuple[bool, str]:
    """Whether what is typed can be saved, and what would happen or what is wrong."""
    shown = printable(text.strip())
    try:
        asked = read_request(text, view)
        shown = printable(asked.path)
        target = _target(asked.subject, asked.path, view)
        if reason := why_not(asked.subject, view):
            return False, reason
        shown = printable(str(target))
        if not os.path.lexists(target):
            return True, f"{asked.subject} to {shown}"
        if asked.replace:
            return True, f"{asked.subject} replaces {shown} ({size(target.stat().st_size)})"
        free = printable(free_name(target).name)
        return True, f"{asked.subject} to {free}: {shown} is there; ! at the end replaces it"
    except UsageError as error:
        return False, str(error)
    except OSError as error:
        return False, f"{shown}: {error.strerror or error}"


# --- where ------------------------------------------------------------------------------------


def _target(subject: Subject, given: str, view: View) -> Path:
    """The path a subject goes to, absolute; everything about it that can be wrong is looked at."""
    shown = printable(given)
    try:
        if "\0" in given:
            raise ValueError("it has a null character in it")
        path = Path(given).expanduser().absolute()
        if given.endswith("/") or path.is_dir():
            path = path / suggested(subject, view)
            if path.is_dir():
                raise UsageError(f"{printable(str(path))}: is a folder: name a file")
        there = path.exists()
        plain = not there or path.is_file()
    except (RuntimeError, ValueError, OSError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{shown}: cannot be a path: {said}") from error
    forms = FORMS[subject]
    if path.suffix.lower() not in forms:
        ending = f"ends in {printable(path.suffix)}" if path.suffix else "has no ending"
        where = [each for each in SUBJECTS if path.suffix.lower() in FORMS[each]]
        hint = f"; {path.suffix.lower()} is for {', '.join(where)}" if where else ""
        raise UsageError(f"{shown}: {ending}, the {subject} is saved as {' '.join(forms)}{hint}")
    if subject == "table" and path.suffix.lower() == ".svg" and len(view.rows) > MOST_DRAWN:
        raise UsageError(
            f"{shown}: {len(view.rows):,} rows are too many for a picture of at most "
            f"{MOST_DRAWN:,}: filter them, or save them as .csv"
        )
    folder = path.parent
    if not folder.is_dir():
        raise UsageError(
            f"{shown}: there is no folder {printable(str(folder))}: make it, or name another"
        )
    if not plain:
        raise UsageError(f"{shown}: is not a file: name another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"{shown}: you may not write in {printable(str(folder))}: name another folder"
        )
    return path


def _paths(typed: str, subject: Subject) -> list[tuple[str, str]]:
    """Folders and files that begin so, and endings that a name without one could have."""
    head, _, name = typed.rpartition("/")
    folder = f"{head}/" if "/" in typed else ""
    found: list[tuple[str, str]] = []
    try:
        with os.scandir(Path(folder or ".").expanduser()) as entries:
            matching = (
                entry for entry in entries
                if entry.name.startswith(name) and (name or not entry.name.startswith("."))
            )  # fmt: skip
            for entry in islice(matching, 4 * LISTED):
                if entry.is_dir():
                    found.append((f"{folder}{entry.name}/", "folder"))
                elif Path(entry.name).suffix.lower() in FORMS[subject]:
                    found.append((f"{folder}{entry.name}", "is there"))
    except (OSError, RuntimeError, ValueError):
        found = []
    found = sorted(each for each in found if each[0].isprintable())[:LISTED]
    # A name may hold points: what follows the last is an ending only if it could become one.
    stem, point, ending = name.rpartition(".")
    starts = point and any(form.startswith(f".{ending}") for form in FORMS[subject])
    stem = stem if starts else name
    if stem:
        for form in FORMS[subject]:
            if form != f".{ending}" and (not starts or form.startswith(f".{ending}")):
                found.append((f"{folder}{stem}{form}", FORM_WORDS[form]))
    return list(dict(reversed(found)).items())[::-1]


# --- what -------------------------------------------------------------------------------------


def _content(subject: Subject, path: Path, view: View) -> tuple[bytes, str, str]:
    """What is written, what it is in a few words, and the command that gives it again."""
    form = cast(Form, path.suffix.lower())
    if subject == "recipe":
        text, again = recipe_toml(view, path)
        layers = _counted(len(view.session.changed), "changed layer")
        return text.encode(), f"the recipe of {layers}", again
    if subject == "screen":
        again = command(view.session.settings, view.source, "open")
        if form == ".txt":
            return f"{text_of(view.screen)}\n\n{again}\n".encode(), "the screen", again
        drawn = screen_svg(
            view.screen, title=f"qtui {view.source}", command=again, palette=view.palette
        )
        return drawn.encode(), "the screen", again
    table = table_of(subject, view)
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


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
