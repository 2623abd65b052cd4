"""What was asked of recipes, as tables: prompts, tasks, texts, positions, llama.cpp's quantiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from msgspec import UnsetType

from engine.report import schema as s
from engine.report.characters import printable
from engine.report.tables.cells import figure
from engine.report.tables.divergence import divergence_rows
from engine.report.tables.layout import escaped, markdown
from engine.report.tables.symptoms import (
    CONTRAST,
    RESTORED,
    cause_lines,
    contrast_rows,
    contrast_title,
    prompt_text,
    rate_rows,
    restored_rows,
)
from engine.report.tables.symptoms import HEADINGS as RATES
from engine.report.tables.tasks import HEADINGS, changed_items, indented, task_rows
from engine.report.tables.texts import position_columns, text_columns
from engine.report.wording import counted


class Table(NamedTuple):
    """A table with a line above it, and lines below."""

    title: str
    headings: list[str]
    rows: list[list[str]]
    below: str = ""


def asked_tables(part: s.AskedPart) -> Iterator[Table]:
    """Every table of one recipe."""
    for each in [] if isinstance(part.prompts, UnsetType) else part.prompts:
        yield from prompt_tables(each)
    if part.tasks:
        changed = [changed_items(task) for task in part.tasks if task.changed_items]
        yield Table("Tasks", HEADINGS, task_rows(part.tasks), "\n".join(changed))
    if part.texts:
        yield Table("By text", *text_columns(part.texts))
    for text in part.texts:
        title = f"By position in the windows of {printable(text.name)}"
        yield Table(title, *position_columns(text))
    if not isinstance(part.divergence, UnsetType):
        yield Table(
            "As llama-perplexity --kl-divergence has it",
            ["", printable(part.recipe)],
            divergence_rows([part.divergence]),
        )


def prompt_tables(part: s.PromptSetPart) -> Iterator[Table]:
    """Prompts that were continued: rates and causes, what was given back, what differs inside."""
    how, count = part.sampling, counted(part.prompts, "prompt")
    drawn = f"temperature {figure(how.temperature, 2)}" if how.temperature else "greedy"
    title = (
        f"{count}, {how.new_tokens} new tokens, {drawn}: {counted(part.same, 'text')} the same, "
        f"{part.alarms} with a symptom that the reference has not"
    )
    below = cause_lines(part.causes)
    rows, against = contrast_rows(part.contrast), contrast_title(part.contrast)
    if against and not rows:  # says why
        below += [against]
    for each in part.examples:
        below += ["", prompt_text(each)]
    yield Table(title, RATES, rate_rows(part.rates), "\n".join(below))
    if part.restored:
        yield Table("Given back", RESTORED, restored_rows(part.restored))
    if rows:
        yield Table(against, CONTRAST, rows)


def asked_markdown(document: s.ReportDocument) -> list[str]:
    """Paragraphs of a report: a section for each recipe; none where nothing was asked."""
    if isinstance(document.asked, UnsetType):
        return []
    found = []
    for part in document.asked:
        found.append(f"## Prompts, tasks and texts of {escaped(printable(part.recipe))}")
        for each in asked_tables(part):
            found += [f"### {escaped(each.title)}", markdown(_escaped(each.headings), each.rows)]
            found += [indented(each.below)] if each.below else []
    return found


def _escaped(headings: list[str]) -> list[str]:
    return [escaped(each) for each in headings]
