"""Evaluation jobs: of a given recipe, of the session's own, and of those it held before."""

from __future__ import annotations

from engine import protocol as p
from engine.recipes.given import check_given, given_recipe
from engine.service.jobs import Context, JobSpec, Resolved, Steps
from engine.session.tried import layers_of
from engine.workspace import Loaded, Opened, Workspace, needs


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
    memory=needs.of_passes(streams=2),
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
    memory=needs.of_passes(streams=2),
    repeated="replace",
    recipe=_own,
    steps=_steps,
)


def _recalled(context: Context[Workspace], command: p.RecallScores) -> Steps:
    from engine.measure.evaluation.recalling import recall

    session = context.snapshot
    assert session is not None
    held = {tried.recipe: at for at, tried in enumerate(session.tried) if tried.measured}
    recipes = [layers_of(session, at) for at in held.values()]
    return (yield from recall(context.workspace.need(Loaded), recipes, context.job))


RECALL = JobSpec(
    command=p.RecallScores,
    kind="recall",
    title=lambda command: "recall scores",
    needs="model",
    lane="compute",
    urgency=0,
    snapshot=lambda command: True,
    announced="never",
    repeated="replace",
    steps=_recalled,
)
