"""The job that scores a recipe on several texts, and by position."""

from __future__ import annotations

import msgspec

from engine import protocol as p
from engine.errors import UsageError
from engine.recipes.given import as_evaluated, check_given, given_recipe, names_recipe
from engine.service.jobs import Context, JobSpec, Resolved, Steps
from engine.workspace import Loaded, Opened, Workspace, needs


def _accepted(context: Context[Workspace], command: p.MeasureTexts) -> p.MeasureTexts:
    if names_recipe(command):
        check_given(as_evaluated(command))
    elif not context.session.changed:
        raise UsageError("every layer is as stored, so nothing differs: give some a format first")
    return msgspec.structs.replace(command, texts=tuple(dict.fromkeys(command.texts)))


def _recipe(context: Context[Workspace], command: p.MeasureTexts) -> Resolved:
    if not names_recipe(command):
        return context.session.recipe(), ()
    tied = context.workspace.need(Opened).tied
    return given_recipe(context.session, as_evaluated(command), tied=tied)


def _steps(context: Context[Workspace], command: p.MeasureTexts) -> Steps:
    from engine.measure.by_text.by_text import measure_texts

    loaded = context.workspace.need(Loaded)
    return (yield from measure_texts(loaded, command.texts, context.recipe, context.job))


BY_TEXT = JobSpec(
    command=p.MeasureTexts,
    kind="texts",
    title=lambda command: " ".join(["evaluate on", *(command.texts or ("the text",))]),
    needs="model",
    lane="compute",
    urgency=1,
    memory=needs.of_passes(streams=2),
    repeated="join",
    announced="when ready",  # layer names are final only once the model is loaded
    accept=_accepted,
    recipe=_recipe,
    steps=_steps,
)
