"""A `SavedTable` as CSV, JSON, tab-separated or aligned text; in full where machines read."""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec
from rich.cells import cell_len

from engine import protocol as p
from engine.report.documents import histogram as histogram_part
from engine.report.json import encode, finite
from engine.session import Session
from qtui.saved.view import Cell, SavedTable
from qtui.views.text import printable

FORMULA = ("=", "+", "-", "@")
"""What a spreadsheet takes for the beginning of a formula."""
DIGITS = 6
"""Significant digits where a person reads."""
_TO_QUOTE = re.compile(r'[,"#\r\n]|^\s|\s$')


class TableDocument(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A table as a JSON document; keys may be added, those here stay."""

    schema: str
    title: str
    command: str
    weights_command: str = ""
    model: dict[str, Any] = {}
    protocol: p.Protocol | None = None
    baseline: dict[str, Any] = {}
    versions: dict[str, str] = {}
    notes: dict[str, str] = {}
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    histogram: Any = None
    """As in ``qtui triage --histogram``."""


def as_csv(table: SavedTable) -> str:
    """A heading of ``# `` lines, the names of the columns, and the rows.

    What is not known, or not finite, is an empty field. Every field that has a ``#`` in it is in
    quotes, so that readers that skip what follows one (``comment="#"``) read all of it. A text that
    a spreadsheet would run as a formula has an apostrophe before it.
    """
    heading = [f"{table.schema}: {table.title}", f"command: {table.command}"]
    if table.weights_command:
        heading.append(f"weights: {table.weights_command}")
    heading += [f"{about}: {said}" for about, said in table.notes.items()]
    lines = [f"# {printable(line)}" for line in heading]
    for row in (table.columns, *table.rows):
        lines.append(",".join(_field(no_formula(cell)) for cell in row))
    return "\n".join([*lines, ""])


IN_JSON = ("sorted by", "filter", "tuned for", "not in the command")
"""Notes that a JSON document has no place of its own for."""


def as_json(table: SavedTable, session: Session, found: p.HistogramReady | None = None) -> bytes:
    """One document; what is not finite is ``null``, what is not known has no key."""
    read, baseline = session.checkpoint, session.baseline
    document = TableDocument(
        schema=table.schema,
        title=table.title,
        command=table.command,
        weights_command=table.weights_command,
        model={}
        if read is None
        else {
            "name": read.name,
            "params": read.parameters,
            "bytes": read.bytes,
            "fingerprint": read.fingerprint,
        },
        protocol=None if session.model is None else session.model.protocol,
        baseline={}
        if baseline is None
        else {"nll": finite(baseline.nll), "ppl": finite(baseline.ppl)},
        versions=session.versions,
        notes={key: table.notes[key] for key in IN_JSON if key in table.notes},
        columns=table.columns,
        rows=[
            {
                name: finite(cell) if isinstance(cell, float) else cell
                for name, cell in zip(table.columns, row, strict=True)
                if cell is not None
            }
            for row in table.rows
        ],
        histogram=None if found is None else histogram_part(found),
    )  # fmt: skip
    return encode(document)


def as_tsv(table: SavedTable) -> str:
    """Names of the columns and the rows, with tabs between them: what a spreadsheet takes.

    A text that it would run as a formula has an apostrophe before it.
    """
    rows = ([no_formula(cell) for cell in row] for row in (table.columns, *table.rows))
    return "\n".join(["\t".join(row) for row in rows] + [""])


def as_text(table: SavedTable) -> str:
    """Aligned columns for reading, six digits a figure; the command is the last line."""
    lines = [printable(table.title), *aligned(table), ""]
    lines += [f"{about}: {printable(said)}" for about, said in table.notes.items()]
    if table.weights_command:
        lines.append(printable(table.weights_command))
    return "\n".join([*lines, printable(table.command), ""])


def aligned(table: SavedTable) -> list[str]:
    """The names of the columns and the rows, in columns of equal width; figures to the right."""
    rows = [list(table.columns), *([_for_reading(cell) for cell in row] for row in table.rows)]
    widths = [max(_cells(row[at]) for row in rows) for at in range(len(table.columns))]
    right = [
        any(isinstance(row[at], int | float) and not isinstance(row[at], bool)
            for row in table.rows)
        for at in range(len(table.columns))
    ]  # fmt: skip
    return ["  ".join(map(_padded, row, widths, right)).rstrip() for row in rows]


def _padded(text: str, width: int, right: bool) -> str:
    blank = " " * (width - _cells(text))
    return blank + text if right else text + blank


def _cells(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


def in_full(cell: Cell) -> str:
    """A cell with nothing rounded: reading it back gives the same number; empty if not known."""
    match cell:
        case None:
            return ""
        case bool():
            return "true" if cell else "false"
        case float():
            return repr(cell) if math.isfinite(cell) else ""
        case int():
            return str(cell)
        case tuple():
            return "x".join(map(str, cell))
        case _:
            return printable(cell)


def no_formula(cell: Cell) -> str:
    """As `in_full`; text that begins as a formula does has an apostrophe before it.

    Spreadsheets run what begins with one of ``= + - @``, quoted or not, and layers are named by
    whoever made the checkpoint. Numbers stay numbers, those below 0 too.
    """
    text = in_full(cell)
    return f"'{text}" if isinstance(cell, str) and text.startswith(FORMULA) else text


def _for_reading(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:.{DIGITS}g}" if math.isfinite(cell) else "-"
    return in_full(cell) or "-"


def _field(text: str) -> str:
    if _TO_QUOTE.search(text):
        return '"' + text.replace('"', '""') + '"'
    return text
