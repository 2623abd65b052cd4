"""The job that continues prompts by the reference and by a recipe, side by side."""

from __future__ import annotations

from engine import protocol as p
from engine.errors import UsageError
from engine.measure.tasks.named import check_tasks
from engine.recipes.given import as_evaluated, check_given, given_recipe, names_recipe
from engine.service.jobs import Context, JobSpec, Resolved, Steps
from engine.workspace import Loaded, Opened, Workspace, needs

MOST_TOKENS = 4096
"""New tokens of a prompt."""
COLDEST, HOTTEST = 0.001, 10
"""Temperatures of sampling: logits divided by less overflow."""


def _accepted(context: Context[Workspace], command: p.FindSymptoms) -> p.FindSymptoms:
    if names_recipe(command):
        check_given(as_evaluated(command))
    elif not context.session.changed:
        raise UsageError("every layer is as stored, so nothing differs: give some a format first")
    prompts = command.file or any(each.strip() for each in command.prompts)
    if not prompts and not command.tasks and not command.divergence:
        raise UsageError("there is no prompt: name a file of prompts, or type one; or name tasks")
    check_tasks(command.tasks, trusted=context.session.settings.trust_remote_code)
    how = command.sampling
    if not 1 <= how.new_tokens <= MOST_TOKENS:
        raise UsageError(f"{how.new_tokens} new tokens: expected 1 to {MOST_TOKENS}")
    if how.temperature and not COLDEST <= how.temperature <= HOTTEST:
        raise UsageError(
            f"temperature {how.temperature:g}: expected 0, or {COLDEST:g} to {HOTTEST:g}"
        )
    if not 0 < how.top_p <= 1:
        raise UsageError(f"top-p {how.top_p:g}: expected above 0, at most 1")
    return command


def _recipe(context: Context[Workspace], command: p.FindSymptoms) -> Resolved:
    if not names_recipe(command):
        return context.session.recipe(), ()
    tied = context.workspace.need(Opened).tied
    return given_recipe(context.session, as_evaluated(command), tied=tied)


def _steps(context: Context[Workspace], command: p.FindSymptoms) -> Steps:
    from engine.measure.symptoms.finding import find_all

    loaded = context.workspace.need(Loaded)
    return (yield from find_all(loaded, command, context.recipe, context.job))


SYMPTOMS = JobSpec(
    command=p.FindSymptoms,
    kind="symptoms",
    title=lambda command: " ".join(["symptoms", command.recipe, command.format]).strip(),
    needs="model",
    lane="compute",
    memory=needs.of_passes(streams=2),
    urgency=3,
    repeated="join",
    announced="when ready",  # layer names are final only once the model is loaded
    accept=_accepted,
    recipe=_recipe,
    steps=_steps,
)
