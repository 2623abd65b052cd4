"""Completions and verdict of a path to save to."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from engine.errors import UsageError
from engine.report.wording import size
from engine.store.files import free_name
from qtui.saved.request import QUOTES, misspelt, read_request
from qtui.saved.subjects import FORM_WORDS, FORMS, subjects
from qtui.saved.tables import why_not
from qtui.saved.target import target_path
from qtui.saved.view import SUBJECTS, Subject, View
from qtui.views.text import printable

LISTED = 50
"""Entries of a folder that are offered at once."""


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
    if meant := misspelt(text):
        return [(f"{meant} {rest.strip()}", f"{printable(first)} cannot be saved", False)]
    named = space and first in SUBJECTS
    lead, typed = (f"{first} ", rest.lstrip()) if named else ("", text.strip())
    quote = typed[:1] if typed[:1] in QUOTES else ""
    typed = typed.removeprefix(quote)
    asked = read_request(text, view)
    if typed:
        for path, says in _paths(typed, asked.subject):
            before = quote or ('"' if not lead and misspelt(path) else "")
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
        target = target_path(asked.subject, asked.path, view)
        if reason := why_not(asked.subject, view):
            return False, reason
        shown = printable(str(target))
        if not os.path.lexists(target):
            return True, f"{asked.subject} to {shown}"
        if asked.replace:
            return True, f"{asked.subject} replaces {shown} ({size(target.stat().st_size)})"
        free = printable(free_name(target).name)
        return True, f"{asked.subject} to {free}: {shown} exists; add ! to replace it"
    except UsageError as error:
        return False, str(error)
    except OSError as error:
        return False, f"{shown}: {error.strerror or error}"


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
                    found.append((f"{folder}{entry.name}", "exists"))
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
