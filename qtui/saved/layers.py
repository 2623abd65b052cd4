"""Tables of layers, made from the figures: full precision, units in the names of columns."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from engine import protocol as p
from engine.report.figures import ALWAYS, Context, Figure, Value
from engine.report.figures.declaration import Source
from engine.report.figures.quantity import NATS, RATE
from engine.report.figures.registry import column_figures, csv_figures, figure
from engine.session import Session
from qtui.saved.notes import formats_option, measured_by, model_name, notes_of, under_cursor
from qtui.saved.view import Cell, SavedTable, View

WAYS: dict[p.Direction, str] = {"degrade": "sensitivity", "restore": "restoring"}
WHICH = ("format", "direction", "source")
"""Figures that say which effect it is: beside the value in a table of one layer."""


def layers(view: View) -> SavedTable:
    """The rows that are shown, in their order."""
    session = view.session
    context = _context(view, view.format)
    chosen = csv_figures(view.columns)
    readers = [each.read.bind(context) for each in chosen]
    found = [[read(row) for read in readers] for row in view.rows]
    # What no row has is no column: nothing was estimated, or weights are not read yet.
    kept = [
        at
        for at, each in enumerate(chosen)
        if each.csv is not None
        and (each.csv.beside == ALWAYS or any(row[at] is not None for row in found))
    ]
    saved = {chosen[at].id: at for at in kept}
    of_weights = any(chosen[at].read.source in ("weights", "error") for at in kept)
    swept = "source" in saved
    measured = swept and any(row[saved["source"]] == "measured" for row in found)
    what = f"{len(found)} of {len(session.layers.names)} layers of {model_name(view)}"
    triage = measured_by(view, "triage", formats_option(view) if "error" in saved else ())
    return SavedTable(
        schema="qtui.saved-table/1",
        title=f"{WAYS[view.direction]} of {what} in {view.format}"
        if swept
        else f"weights of {what}",
        command=_sweep_command(view, (view.format,), view.direction, measured) if swept else triage,
        weights_command=triage if swept and of_weights else "",
        columns=tuple(csv.name for at in kept if (csv := chosen[at].csv) is not None),
        rows=[tuple(row[at] for at in kept) for row in found],
        notes=notes_of(view, order=True),
    )


def in_a_picture(view: View) -> SavedTable:
    """As `layers`, with the columns of the screen's table and numbers as it has them.

    In full precision, and with every figure there is, a picture would be as wide as four screens.
    """
    table = layers(view)
    context = _context(view, view.format)
    chosen = [
        each
        for each in (*column_figures(), figure("source"))
        if each.csv is not None and each.csv.name in table.columns
    ]
    readers = [each.read.bind(context) for each in chosen]
    return msgspec.structs.replace(
        table,
        columns=tuple(map(_title, chosen)),
        rows=[
            tuple(
                "" if (value := read(row)) is None else each.quantity.text(value)
                for each, read in zip(chosen, readers, strict=True)
            )
            for row in view.rows
        ],
    )


def _context(view: View, format: str) -> Context:
    """What rows are read in: the table's own, so that a file says what it shows."""
    key = p.EffectKey(view.direction, format)
    return Context(view.session, key, view.marked, view.serving)


def _title(figure: Figure) -> str:
    title = figure.id if figure.column is None else figure.column.heading.strip()
    return f"{title}·10³" if figure.quantity in (NATS, RATE) else title


def _sweep_command(
    view: View, formats: tuple[str, ...], direction: p.Direction, measured: bool
) -> str:
    """The sweep that gives these figures again: of what is only estimated, nothing is measured."""
    extra = ["--formats", ",".join(formats)]
    if direction != "degrade":
        extra += ["--direction", direction]
    if not measured:
        extra += ["--exact", "none"]
    return measured_by(view, "sweep", extra)


def layer(view: View) -> SavedTable:
    """All that is known about the layer under the cursor, a figure a row."""
    name, row = under_cursor(view)
    session = view.session
    rows: list[tuple[Cell, ...]] = [
        (each, "", "", value) for each, value in _plain(view, row) if value is not None
    ]
    effects, swept = session.effects, []
    for key in effects.known():
        for column in (effects.measured.get(key), effects.estimated.get(key)):
            if column is None or (known := column[row]) is None:
                continue
            lead = "" if key.direction == "degrade" else f"{key.direction}_"
            source = "measured" if isinstance(known, p.Sensitivity) else "estimated"
            found = _effect(session, known)
            rows += [(f"{lead}{each}", key.format, source, value) for each, value in found]
            swept.append(key.format)
    weights = session.layers.weights[row]
    read = tuple(weights.errors) if weights is not None else ()
    for format in read:
        assert weights is not None
        errors = _of_fact("error", weights.errors[format], session)
        rows += [(each, format, "", value) for each, value in errors]
    if weights is not None:
        rows += [("refused", format, "", why) for format, why in weights.refused.items()]
    for number, change in enumerate(session.history[: session.position], 1):
        rows += [
            (f"change_{number}", after, "", f"from {before}")
            for changed, before, after in zip(
                change.layers, change.before, change.after, strict=True
            )
            if changed == name
        ]
    triage = measured_by(view, "triage", ("--formats", ",".join(read)) if read else ())
    sweep = measured_by(view, "sweep", ("--formats", ",".join(dict.fromkeys(swept))))
    return SavedTable(
        schema="qtui.saved-layer/1",
        title=f"layer {name} of {model_name(view)}",
        command=sweep if swept else triage,
        weights_command=triage if swept and weights is not None else "",
        columns=("figure", "format", "source", "value"),
        rows=rows,
        notes=notes_of(view),
    )


def _plain(view: View, row: int) -> Iterator[tuple[str, Value | None]]:
    """Figures of a layer that are of no format."""
    context = _context(view, "")
    for each in csv_figures():
        if each.csv is not None:
            yield each.csv.name, each.read.bind(context)(row)


def _effect(session: Session, known: p.Sensitivity | p.Estimate) -> list[tuple[str, Value]]:
    """Figures of one effect, as it was measured or estimated."""
    found = _of_fact("effect", known, session)
    if isinstance(known, p.Estimate) and known.doubt:
        found.append(("doubt", known.doubt))
    return found


def _of_fact(source: Source, fact: object, session: Session) -> list[tuple[str, Value]]:
    """Figures of one fact, by the name of their column."""
    return [
        (each.csv.name, value)
        for each in csv_figures()
        if each.csv is not None
        and each.read.source == source
        and each.read.value is not None
        and each.id not in WHICH
        and (value := each.read.value(fact, session)) is not None
    ]
