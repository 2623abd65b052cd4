"""The file that something is saved to, checked before it is written."""

from __future__ import annotations

import os
from pathlib import Path

from engine.errors import UsageError
from qtui.saved.subjects import FORMS, suggested
from qtui.saved.view import SUBJECTS, Subject, View
from qtui.views.text import printable

MOST_DRAWN = 2000
"""Rows of a table in a picture: with more of them no viewer opens it."""


def target_path(subject: Subject, given: str, view: View) -> Path:
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
        ending = f"ends in {printable(path.suffix)}" if path.suffix else "has no extension"
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
            f"{shown}: there is no folder {printable(str(folder))}: create it, or name another"
        )
    if not plain:
        raise UsageError(f"{shown}: is not a file: name another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"{shown}: you may not write in {printable(str(folder))}: name another folder"
        )
    return path
