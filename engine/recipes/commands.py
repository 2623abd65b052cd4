"""The commands that change the session's recipe; each is followed by a measurement of it."""

from __future__ import annotations

from engine import protocol as p
from engine.recipes.changes import change, redo, undo
from engine.service.jobs import ChangeSpec

SET_FORMAT = ChangeSpec(
    command=p.SetFormat,
    change=lambda session, command: change(session, command.layers, command.format),
    then=p.MeasureRecipe(),
)
UNDO = ChangeSpec(
    command=p.Undo, change=lambda session, command: undo(session), then=p.MeasureRecipe()
)
REDO = ChangeSpec(
    command=p.Redo, change=lambda session, command: redo(session), then=p.MeasureRecipe()
)
