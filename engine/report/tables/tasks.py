"""Tasks as text: accuracies and flips with intervals, then items whose answer changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.report import schema as s
from engine.report.characters import printable
from engine.report.tables.cells import figure, share
from engine.report.tables.layout import markdown, table

HEADINGS = [
    *("task", "metric", "items", "reference", "recipe", "difference", "95%", "flips", "95%"),
    *("lost", "gained", "chance"),
]
SHOWN = 8
"""Items of a task that are printed."""
CHARACTERS = 60
"""Of a prompt or an answer that is printed."""


def tasks_text(tasks: Sequence[s.TaskPart]) -> list[str]:
    """Paragraphs: one table of all tasks, and the changed items of each."""
    return _paragraphs(tasks, lambda rows: table(HEADINGS, rows, {0, 1}))


def tasks_markdown(tasks: Sequence[s.TaskPart]) -> list[str]:
    """The same as Markdown."""
    return _paragraphs(tasks, lambda rows: markdown(HEADINGS, rows), indent="    ")


def _paragraphs(
    tasks: Sequence[s.TaskPart], as_table: Callable[[list[list[str]]], str], indent: str = ""
) -> list[str]:
    if not tasks:
        return []
    changed = [changed_items(task) for task in tasks if task.changed_items]
    return [as_table(task_rows(tasks)), *(indented(each, indent) for each in changed)]


def indented(text: str, by: str = "    ") -> str:
    """Lines that Markdown shows as they are; a name among them cannot end that."""
    return "\n".join(f"{by}{line}" for line in text.splitlines())


def task_rows(tasks: Sequence[s.TaskPart]) -> list[list[str]]:
    """Rows under `HEADINGS`: every task by each of its metrics."""
    return [
        _row(task.name, task.items, metric)
        for task in tasks
        for metric in (task, *task.other_metrics)
    ]


def _row(name: str, items: int, found: s.TaskMetric) -> list[str]:
    low, high = found.difference_ci95
    return [
        printable(name),
        printable(found.metric),
        str(items),
        share(found.accuracy_reference),
        share(found.accuracy),
        _signed(found.difference),
        f"{_signed(low)} … {_signed(high)}",
        str(found.flips),
        " … ".join(share(end) for end in found.flips_ci95),
        str(found.lost),
        str(found.gained),
        figure(found.chance, 3),
    ]


def _signed(value: s.Number) -> str:
    if value is None:
        return "?"
    return ("+" if value > 0 else "−" if value < 0 else "") + share(abs(value))


def changed_items(task: s.TaskPart) -> str:
    """The first of the items whose answer changed, a few lines for each."""
    lines = [f"{printable(task.name)}: {task.changed} of {task.items} answers changed"]
    for each in task.changed_items[:SHOWN]:
        same = each.reference_right == each.recipe_right
        verdict = "changed" if same else "lost" if each.reference_right else "gained"
        lines.append(f"  {verdict:<8}{printable(each.id)}: …{_end(each.prompt)}")
        said = f"reference {_quoted(each.reference)}, recipe {_quoted(each.recipe)}"
        lines.append(f"          {said}; right is {_quoted(each.right)}")
    if (left := task.changed - min(SHOWN, len(task.changed_items))) > 0:
        lines.append(f"  … and {left} more")
    return "\n".join(lines)


def _end(text: str) -> str:
    return printable(text)[-CHARACTERS:]


def _quoted(text: str) -> str:
    shown = printable(text)
    cut = shown if len(shown) <= CHARACTERS else f"{shown[: CHARACTERS - 1]}…"
    return f"'{cut}'" if text else "something else"
