"""A recipe on several texts, a column each, and by position in their windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.report import schema as s
from engine.report.characters import printable
from engine.report.tables.cells import figure, ppl, share
from engine.report.tables.layout import escaped, markdown, table

Figures = s.TextPart | s.PositionsPart


def by_text(texts: Sequence[s.TextPart], *, as_markdown: bool = False) -> str:
    """Perplexity of reference and recipe, and KL, on each text; a column a text.

    Args:
        texts: in order; nothing is drawn without any.
        as_markdown: whether to write Markdown.
    """
    if not texts:
        return ""
    headings, rows = text_columns(texts)
    return _drawn(headings, rows, as_markdown=as_markdown)


def text_columns(texts: Sequence[s.TextPart]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of `by_text`."""
    rows = [
        ["tokens", *(f"{each.tokens:,}" for each in texts)],
        *_rows(texts),
        ["95% of that PPL", *(_interval(each.ppl_ci95) for each in texts)],
        ["top-1", *(share(each.top1_agreement) for each in texts)],
    ]
    return ["", *(printable(each.name) for each in texts)], rows


def by_position(texts: Sequence[s.TextPart], *, as_markdown: bool = False) -> str:
    """The same by the number of tokens before a prediction; a table a text.

    Args:
        texts: in order; nothing is drawn without any.
        as_markdown: whether to write Markdown.
    """
    found = []
    for each in texts:
        said = f"by position in the windows of {printable(each.name)}"
        headings, rows = position_columns(each)
        drawn = _drawn(headings, rows, as_markdown=as_markdown)
        found.append(f"{escaped(said)}\n\n{drawn}" if as_markdown else f"{said}\n{drawn}")
    return "\n\n".join(found)


def position_columns(text: s.TextPart) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of one table of `by_position`."""
    return ["tokens before", *map(_range, text.positions)], _rows(text.positions)


def _rows(columns: Sequence[Figures]) -> list[list[str]]:
    named: list[tuple[str, Callable[[Figures], str]]] = [
        ("PPL as stored", lambda each: ppl(each.ppl_reference)),
        ("PPL of the recipe", lambda each: ppl(each.ppl)),
        ("ΔNLL", lambda each: _with(each.dnll, each.dnll_se, 1.0, 4)),
        ("KL·10³", lambda each: _with(each.kl, each.kl_se, 1000.0, 2)),
    ]
    return [[name, *map(cell, columns)] for name, cell in named]


def _drawn(headings: list[str], rows: list[list[str]], *, as_markdown: bool) -> str:
    if as_markdown:
        return markdown([escaped(each) for each in headings], rows)
    return table(headings, rows, {0})


def _range(at: s.PositionsPart) -> str:
    return f"{at.first}–{at.last}" if at.last > at.first else f"{at.first}"


def _interval(ends: tuple[s.Number, s.Number]) -> str:
    return " … ".join("" if end is None else ppl(end) for end in ends)


def _with(value: s.Number, error: s.Number, unit: float, places: int) -> str:
    said = figure(None if value is None else unit * value, places)
    return said if error is None else f"{said} ± {figure(unit * error, places)}"
