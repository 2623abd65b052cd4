"""What was asked of recipes, as tables: tasks, texts, positions, llama.cpp's quantiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from msgspec import UnsetType

from engine.report import schema as s
from engine.report.characters import printable
from engine.report.tables.divergence import divergence_rows
from engine.report.tables.layout import escaped, markdown
from engine.report.tables.tasks import HEADINGS, changed_items, indented, task_rows
from engine.report.tables.texts import position_columns, text_columns


class Table(NamedTuple):
    """A table with a line above it, and lines below."""

    title: str
    headings: list[str]
    rows: list[list[str]]
    below: str = ""


def asked_tables(part: s.AskedPart) -> Iterator[Table]:
    """Every table of one recipe."""
    if part.tasks:
        changed = [changed_items(task) for task in part.tasks if task.changed_items]
        yield Table("Tasks", HEADINGS, task_rows(part.tasks), "\n".join(changed))
    if part.texts:
        yield Table("By text", *text_columns(part.texts))
    for each in part.texts:
        title = f"By position in the windows of {printable(each.name)}"
        yield Table(title, *position_columns(each))
    if not isinstance(part.divergence, UnsetType):
        yield Table(
            "As llama-perplexity --kl-divergence has it",
            ["", printable(part.recipe)],
            divergence_rows([part.divergence]),
        )


def asked_markdown(document: s.ReportDocument) -> list[str]:
    """Paragraphs of a report: a section for each recipe; none where nothing was asked."""
    if isinstance(document.asked, UnsetType):
        return []
    found = []
    for part in document.asked:
        found.append(f"## Tasks and texts of {escaped(printable(part.recipe))}")
        for each in asked_tables(part):
            found += [f"### {escaped(each.title)}", markdown(_escaped(each.headings), each.rows)]
            found += [indented(each.below)] if each.below else []
    return found


def _escaped(headings: list[str]) -> list[str]:
    return [escaped(each) for each in headings]
