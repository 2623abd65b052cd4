"""Prompts, tasks, texts and tables of recipes that a session measured, for a report."""

from __future__ import annotations

from msgspec import UNSET

from engine import protocol as p
from engine.report import schema as s
from engine.report.comparison_parts import divergence_part
from engine.report.symptom_parts import formats_of, prompt_set_part
from engine.report.task_parts import task_part
from engine.report.text_parts import text_part
from engine.session import Job, Session


def asked_parts(session: Session) -> list[s.AskedPart]:
    """What was asked of each recipe; of a task, a text or a table the newest."""
    names: dict[str, str] = {}
    tasks: dict[str, dict[str, s.TaskPart]] = {}
    texts: dict[str, dict[str, s.TextPart]] = {}
    tables: dict[str, p.DivergenceTable] = {}
    prompts: dict[str, dict[p.Sampling, dict[str, None]]] = {}
    failing: dict[tuple[str, p.Sampling], str] = {}
    formats: dict[str, list[str]] = {}
    for job in session.jobs.values():
        if job.status != "done" or not job.result:
            continue
        if isinstance(job.command, p.FindSymptoms):
            found = job.read(p.Symptoms)
            if not found.tasks and not found.prompts and found.divergence is None:
                continue
            names[found.recipe] = _called(session, job, job.command)
            formats[found.recipe] = formats_of(session, job.command)
            if found.prompts:
                sets = prompts.setdefault(found.recipe, {})
                sets[job.command.sampling] = dict.fromkeys(
                    [*sets.get(job.command.sampling, ()), *found.prompts]
                )
            if found.failing:
                failing[found.recipe, job.command.sampling] = found.failing
            answered = {each.name: task_part(each) for each in found.tasks}
            tasks.setdefault(found.recipe, {}).update(answered)
            if found.divergence is not None:
                tables[found.recipe] = found.divergence
        elif isinstance(job.command, p.MeasureTexts):
            measured = job.read(p.MeasuredTexts)
            names[measured.recipe] = _called(session, job, job.command)
            scored = {each.name: text_part(each) for each in measured.texts}
            texts.setdefault(measured.recipe, {}).update(scored)
    return [
        s.AskedPart(
            recipe=name,
            prompts=[
                prompt_set_part(
                    session,
                    recipe,
                    formats[recipe],
                    list(keys),
                    how,
                    failing.get((recipe, how), ""),
                )
                for how, keys in prompts.get(recipe, {}).items()
            ]
            or UNSET,
            tasks=list(tasks.get(recipe, {}).values()),
            texts=list(texts.get(recipe, {}).values()),
            divergence=divergence_part(tables[recipe]) if recipe in tables else UNSET,
        )
        for recipe, name in names.items()
    ]


def _called(session: Session, job: Job, command: p.FindSymptoms | p.MeasureTexts) -> str:
    """What a recipe is called: as a command named it, else as the session has it."""
    words = [command.recipe, command.format if command.format != "kept" else ""]
    if command.layers:
        count = len(command.layers)
        words.append(f"{count} layer{'s' if count > 1 else ''}")
    if any(words):
        return " ".join(word for word in words if word)
    named = [each.name for each in session.tried if each.name and each.recipe == job.recipe]
    return named[-1] if named else "the session's recipe"
