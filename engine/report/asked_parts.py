"""Prompts, tasks, texts and tables of recipes that a session measured, for a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from msgspec import UNSET

from engine import protocol as p
from engine.report import schema as s
from engine.report.comparison_parts import divergence_part
from engine.report.symptom_parts import formats_of, prompt_set_part
from engine.report.task_parts import task_part
from engine.report.text_parts import text_part
from engine.session import Session, recipe_hash
from engine.session.tried import layers_of, made_of


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
            names[found.recipe] = _called(session, found.recipe, job.command)
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
            names[measured.recipe] = _called(session, measured.recipe, job.command)
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
        for recipe, name in _told_apart(names).items()
    ]


def _called(session: Session, recipe: str, command: p.FindSymptoms | p.MeasureTexts) -> str:
    """What a recipe is called: as a command named it, else as the session has it."""
    words = [command.recipe, command.format if command.format != "kept" else ""]
    if command.layers:
        count = len(command.layers)
        words.append(f"{count} layer{'s' if count > 1 else ''}")
    if any(words):
        return " ".join(word for word in words if word)
    named = [each.name for each in session.tried if each.name and each.recipe == recipe]
    if named:
        return named[-1]
    made = next(
        (
            made_of(session, number)
            for number, each in enumerate(session.tried)
            if recipe == (each.recipe or recipe_hash(layers_of(session, number)))
        ),
        "",
    )
    return f"the session's recipe, {made}" if made else "the session's recipe"


def _told_apart(names: Mapping[str, str]) -> dict[str, str]:
    """Names by recipe; where several have the same one, with the start of the recipe's hash."""
    counted = Counter(names.values())
    return {
        recipe: name if counted[name] == 1 else f"{name}, recipe {recipe[:8]}"
        for recipe, name in names.items()
    }
