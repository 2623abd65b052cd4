"""The commands that change the session's recipe; each is followed by a measurement of it."""

from __future__ import annotations

from engine import protocol as p
from engine.recipes.changes import change, named, redo, take, tuned_for, undo, whole
from engine.service.jobs import ChangeSpec

SET_FORMAT = ChangeSpec(
    command=p.SetFormat,
    change=lambda session, command: change(session, command.layers, command.format),
    then=p.MeasureRecipe(),
)
SET_RECIPE = ChangeSpec(
    command=p.SetRecipe,
    change=lambda session, command: whole(session, command.layers),
    then=p.MeasureRecipe(),
)
UNDO = ChangeSpec(
    command=p.Undo, change=lambda session, command: undo(session), then=p.MeasureRecipe()
)
TAKE_RECIPE = ChangeSpec(
    command=p.TakeRecipe,
    change=lambda session, command: take(session, command.number),
    then=p.MeasureRecipe(),
)
NAME_RECIPE = ChangeSpec(
    command=p.NameRecipe,
    change=lambda session, command: named(session, command.number, command.name),
)
TUNE_FOR = ChangeSpec(
    command=p.TuneFor,
    change=lambda session, command: tuned_for(
        session, command.target, command.context, command.batch
    ),
)
REDO = ChangeSpec(
    command=p.Redo, change=lambda session, command: redo(session), then=p.MeasureRecipe()
)
