"""The job that has tasks answered by the reference and by a recipe."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from engine import protocol as p
from engine.errors import UsageError
from engine.recipes.given import as_evaluated, check_given, given_recipe, names_recipe
from engine.service.jobs import Context, JobSpec, Resolved, Steps
from engine.texts.task_items import is_task_file, read_tasks
from engine.workspace import Loaded, Opened, Workspace


def _accepted(context: Context[Workspace], command: p.ScoreTasks) -> p.ScoreTasks:
    if names_recipe(command):
        check_given(as_evaluated(command))
    elif not context.session.changed:
        raise UsageError("every layer is as stored, so nothing differs: give some a format first")
    if not command.tasks:
        raise UsageError("there is no task: name a file of JSON lines, or a task of lm-eval")
    for task in command.tasks:
        if is_task_file(task):
            read_tasks(Path(task))
        elif importlib.util.find_spec("lm_eval") is None:
            raise UsageError(
                f"{task} is no file, and lm-eval is not installed: pip install lm-eval, or name a "
                f"file of JSON lines"
            )
        elif Path(task).is_file() and not context.session.settings.trust_remote_code:
            raise UsageError(f"{task} may have lm-eval run code beside it: --trust-remote-code")
    return command


def _recipe(context: Context[Workspace], command: p.ScoreTasks) -> Resolved:
    if not names_recipe(command):
        return context.session.recipe(), ()
    tied = context.workspace.need(Opened).tied
    return given_recipe(context.session, as_evaluated(command), tied=tied)


def _steps(context: Context[Workspace], command: p.ScoreTasks) -> Steps:
    from engine.measure.tasks.tasks import score_tasks

    loaded = context.workspace.need(Loaded)
    return (yield from score_tasks(loaded, command.tasks, context.recipe, context.job))


TASKS = JobSpec(
    command=p.ScoreTasks,
    kind="tasks",
    title=lambda command: "tasks " + ", ".join(Path(each).name for each in command.tasks),
    needs="model",
    lane="compute",
    urgency=3,
    repeated="join",
    announced="when ready",  # layer names are final only once the model is loaded
    accept=_accepted,
    recipe=_recipe,
    steps=_steps,
)
