"""The event log as a table."""

from __future__ import annotations

from datetime import datetime

from qtui.saved.notes import measured_by, model_name, notes_of
from qtui.saved.view import Cell, SavedTable, View


def log(view: View) -> SavedTable:
    """What happened, oldest first, after the fallbacks, each with its layer.

    Times are of the wall clock, with the offset of its zone; empty where it is not known.
    """
    session = view.session
    rows: list[tuple[Cell, ...]] = [
        (None, "warning", 1, each.layer, each.format, each.why) for each in session.fallbacks
    ]
    if view.log:
        rows += [
            (_moment(each.time), each.level, each.times, "", "", each.text) for each in view.log
        ]
    else:
        rows += [(None, each.level, 1, "", "", each.message) for each in session.notices]
    return SavedTable(
        schema="qtui.saved-log/1",
        title=f"log of {model_name(view)}",
        command=measured_by(view, "open"),
        columns=("time", "level", "times", "layer", "format", "message"),
        rows=rows,
        notes=notes_of(view),
    )


def _moment(seconds: float | None) -> str | None:
    """``2026-01-31T09:26:53+01:00``."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
