"""Tasks and texts of recipes as lines: a list, and the figures of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TypeAlias

from msgspec import UnsetType

from engine import protocol as p
from engine.errors import EngineError
from engine.report import schema as s
from engine.report import wording as n
from engine.report.asked_parts import asked_parts
from engine.report.tables.cells import figure, ppl, share
from engine.report.tables.divergence import divergence_rows
from engine.report.tables.texts import position_columns
from engine.session import Session
from engine.texts.sets import NAMED
from qtui.views.completion import Completion
from qtui.views.findings import plain
from qtui.views.text import Glyphs, Words, fit, printable

NAME = 48
"""Cells of a task's or text's name, at most."""
RECIPE = 16
"""Cells of a recipe's name."""
FIGURES = 35
"""Cells of the main figures."""

Part: TypeAlias = s.TaskPart | s.TextPart | s.DivergencePart


@dataclass(frozen=True)
class Entry:
    """A task, a text, or llama.cpp's tables, of one recipe."""

    kind: str
    name: str
    recipe: str
    part: Part


def entries(session: Session) -> list[Entry]:
    """All that was asked of recipes, in order of arrival."""
    found: list[Entry] = []
    for of in asked_parts(session):
        found += [Entry("task", each.name, of.recipe, each) for each in of.tasks]
        found += [Entry("text", each.name, of.recipe, each) for each in of.texts]
        if not isinstance(of.divergence, UnsetType):
            found.append(Entry("KLD", "of the session's text", of.recipe, of.divergence))
    return found


def heading(width: int, glyphs: Glyphs) -> Words:
    """The titles of the columns."""
    name = fit("task or text", _room(width), glyphs)
    return [(f"  {name} {'recipe':<{RECIPE}} {'reference, then recipe':>{FIGURES}}", "$dim")]


def line_of(entry: Entry, width: int, glyphs: Glyphs, *, here: bool) -> Words:
    """An entry in the list, with its main figures."""
    style = "bold" if here else ""
    name = fit(f"{entry.kind} {printable(entry.name)}", _room(width), glyphs)
    recipe = fit(printable(entry.recipe).removeprefix("the "), RECIPE, glyphs)
    said = plain(_figures(entry.part, glyphs), glyphs)
    return [
        (f"{glyphs.cursor if here else ' '} ", "$primary"),
        (name, style),
        (f" {recipe} ", "$dim"),
        (fit(f"{said:>{FIGURES}}", FIGURES, glyphs), style),
    ]


def _room(width: int) -> int:
    return max(8, min(NAME, width - 2 - RECIPE - FIGURES - 2))


def _figures(part: Part, glyphs: Glyphs) -> str:
    if isinstance(part, s.TaskPart):
        change = f"{share(part.accuracy_reference)} {glyphs.arrow} {share(part.accuracy)}"
        return f"{part.metric} {change}, {n.counted(part.flips, 'flip')}"
    if isinstance(part, s.TextPart):
        change = f"{ppl(part.ppl_reference)} {glyphs.arrow} {ppl(part.ppl)}"
        return f"PPL {change}, KL{glyphs.kilo} {_kilo(part.kl)}"
    mean, high = (part.kld.get(name) for name in ("mean", "99%"))
    return f"KLD mean {figure(mean, 4)}, 99% {figure(high, 3)}"


def details(entry: Entry, width: int, glyphs: Glyphs) -> list[Words]:
    """Every figure of an entry, with its interval."""
    part = entry.part
    if isinstance(part, s.TaskPart):
        return _of_task(part, width, glyphs)
    if isinstance(part, s.TextPart):
        return _of_text(part, width, glyphs)
    title = f"llama-perplexity --kl-divergence of {printable(entry.recipe)}"
    rows = divergence_rows([part])
    wide = max(len(name) for name, _ in rows)
    lines = [f"{name:<{wide}}  {value:>22}" for name, value in rows]
    return [_line(title, width, glyphs, "bold"), *(_line(each, width, glyphs) for each in lines)]


def _of_task(part: s.TaskPart, width: int, glyphs: Glyphs) -> list[Words]:
    lines: list[Words] = []
    for found in (part, *part.other_metrics):
        reference = _with(share(found.accuracy_reference), found.accuracy_reference_ci95)
        recipe = _with(share(found.accuracy), found.accuracy_ci95)
        lines += _wrapped(
            f"{found.metric}: reference {reference}, recipe {recipe}", width, glyphs, "bold"
        )
        low, high = found.difference_ci95
        lines += _wrapped(
            f"difference {_signed(found.difference)} ({_signed(low)} … {_signed(high)})",
            width, glyphs,
        )  # fmt: skip
        flips = _with(share(found.flips / part.items if part.items else None), found.flips_ci95)
        lines += _wrapped(
            f"{found.flips} of {part.items} flip, {flips}: {found.lost} lost, {found.gained} "
            f"gained; chance of as uneven a change {figure(found.chance, 3)}",
            width, glyphs,
        )  # fmt: skip
    lines += [[], _line(f"{part.changed} of {part.items} answers changed", width, glyphs, "bold")]
    for each in part.changed_items:
        same = each.reference_right == each.recipe_right
        verdict = "changed" if same else "lost" if each.reference_right else "gained"
        tone = "$dim" if same else "$finding" if verdict == "lost" else "$better"
        prompt = fit(printable(each.prompt), max(10, width - 12 - len(each.id)), glyphs, end=False)
        about = f"{printable(each.id)}: {prompt.strip()}"
        lines.append([(f"{verdict:<8}", tone), (fit(about, max(1, width - 8), glyphs), "")])
        said = f"reference {_quoted(each.reference)}, recipe {_quoted(each.recipe)}"
        answer = f"{said}; right is {_quoted(each.right)}"
        cut = fit(plain(answer, glyphs), max(1, width - 8), glyphs)
        lines.append([(" " * 8, ""), (cut, "$dim")])
    if (left := part.changed - len(part.changed_items)) > 0:
        lines.append(_line(f"{left} more changed", width, glyphs, "$dim"))
    return lines


def _of_text(part: s.TextPart, width: int, glyphs: Glyphs) -> list[Words]:
    interval = " … ".join("?" if end is None else ppl(end) for end in part.ppl_ci95)
    said = f"{printable(part.text)}: {part.tokens:,} tokens in {part.windows} windows; "
    said += f"PPL {ppl(part.ppl_reference)} {glyphs.arrow} {ppl(part.ppl)} ({interval}), "
    said += f"top-1 {share(part.top1_agreement)}"
    headings, rows = position_columns(part)
    columns = [headings, *rows]
    widths = [max(len(plain(cell, glyphs)) for cell in column) for column in columns]
    lines = _wrapped(said, width, glyphs)
    lines.append([])
    for at, row in enumerate(zip(*columns, strict=True)):
        cells = [f"{plain(c, glyphs):>{room}}" for c, room in zip(row, widths, strict=True)]
        lines.append(_line("  ".join(cells), width, glyphs, "" if at else "$dim"))
    return lines


def _line(text: str, width: int, glyphs: Glyphs, style: str = "") -> Words:
    return [(fit(plain(text, glyphs), width, glyphs), style)]


def _wrapped(text: str, width: int, glyphs: Glyphs, style: str = "") -> list[Words]:
    return [[(line, style)] for line in wrap(plain(text, glyphs), max(20, width))]


def _with(value: str, ends: tuple[s.Number, s.Number]) -> str:
    return f"{value} ({share(ends[0])} … {share(ends[1])})"


def _signed(value: s.Number) -> str:
    if value is None:
        return "?"
    return ("+" if value > 0 else "-" if value < 0 else "") + share(abs(value))


def _kilo(value: s.Number) -> str:
    return figure(None if value is None else 1000 * value, 1)


def _quoted(text: str) -> str:
    return f"'{printable(text)}'" if text else "something else"


def parse_texts(value: str) -> p.MeasureTexts:
    """Texts that were typed, with spaces or commas between them, as a command.

    Raises:
        EngineError: there are none.
    """
    texts = tuple(part for word in value.split() for part in word.split(",") if part)
    if not texts:
        raise EngineError("texts separated by commas, as in code,prose")
    return p.MeasureTexts(texts=texts)


def complete_texts(typed: str) -> Sequence[Completion]:
    """Names of texts for the last of those typed."""
    before, comma, last = typed.rpartition(",")
    given = set(before.split(","))
    return [
        Completion(f"{before}{comma}{name}", each.help)
        for name, each in NAMED.items()
        if name.startswith(last) and name not in given
    ]
