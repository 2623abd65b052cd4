"""Evaluation jobs: of a given recipe, and of the session's own."""

from __future__ import annotations

from engine import protocol as p
from engine.recipes.given import check_given, given_recipe
from engine.service.jobs import Context, JobSpec, Resolved, Steps
from engine.workspace import Loaded, Opened, Workspace


def _accepted(context: Context[Workspace], command: p.Evaluate) -> p.Evaluate:
    check_given(command)
    return command


def _given(context: Context[Workspace], command: p.Evaluate) -> Resolved:
    return given_recipe(context.session, command, tied=context.workspace.need(Opened).tied)


def _own(context: Context[Workspace], command: p.MeasureRecipe) -> Resolved:
    return context.session.recipe(), ()


def _steps(context: Context[Workspace], command: p.Command) -> Steps:
    from engine.measure.evaluation.evaluate import evaluate

    return (yield from evaluate(context.workspace.need(Loaded), context.recipe, context.job))


EVALUATE = JobSpec(
    command=p.Evaluate,
    kind="evaluate",
    title=lambda command: "evaluate",
    needs="model",
    lane="compute",
    urgency=0,
    announced="when ready",  # layer names are final only once the model is loaded
    accept=_accepted,
    recipe=_given,
    steps=_steps,
)

MEASURE_RECIPE = JobSpec(
    command=p.MeasureRecipe,
    kind="evaluate",
    title=lambda command: "evaluate",
    needs="model",
    lane="compute",
    urgency=0,
    repeated="replace",
    recipe=_own,
    steps=_steps,
)
