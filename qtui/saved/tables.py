"""The table of each subject, or why there is none now."""

from __future__ import annotations

from collections.abc import Callable

from engine.errors import UsageError
from qtui.saved.layers import layer, layers
from qtui.saved.log import log
from qtui.saved.view import SavedTable, Subject, View
from qtui.saved.weights import experts, histogram


def why_not(subject: Subject, view: View) -> str:
    """Why there is nothing of that kind to save now, and what to do; empty where there is."""
    session = view.session
    row = None if view.layer is None else session.row(view.layer)
    if subject in ("histogram", "layer", "experts") and row is None:
        return "there is no layer under the cursor"
    match subject:
        case "table" if not session.layers.names:
            return "no layers yet: wait until the checkpoint is read"
        case "table" if not view.rows:
            return f"no layer matches the filter {view.filter!r}: there is no row to save"
        case "histogram" if view.layer not in session.histograms:
            return f"there is no histogram of {view.layer} yet: let the cursor rest on it"
        case "experts" if view.layer not in session.experts:
            fused = row is not None and session.layers.roles[row] == "experts"
            return f"{view.layer}: " + ("expand it first" if fused else "it has no experts")
        case "log" if not (view.log or session.fallbacks or session.notices):
            return "the log is empty: there is nothing to save"
        case "screen" if not view.screen:
            return "there is nothing on the screen to save"
        case "report" if not session.layers.names:
            return "no layers yet: wait until the checkpoint is read"
        case "recipe" if not session.changed:
            return "no layer is changed: there is no recipe to save"
        case _:
            return ""


def table_of(subject: Subject, view: View) -> SavedTable:
    """The figures of a subject.

    Raises:
        UsageError: there is nothing of that kind now; the message says what to do.
    """
    makers: dict[Subject, Callable[[View], SavedTable]] = {
        "table": layers,
        "histogram": histogram,
        "layer": layer,
        "experts": experts,
        "log": log,
    }
    if reason := why_not(subject, view):
        raise UsageError(reason)
    return makers[subject](view)
