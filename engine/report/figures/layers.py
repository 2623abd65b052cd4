"""Figures of the listing of layers: what a layer is, what it holds, and what that takes."""

from __future__ import annotations

import math

from engine.report.figures.declaration import (
    ALWAYS,
    Changes,
    Column,
    Context,
    CsvName,
    Document,
    Figure,
    FilterWord,
    JsonPath,
    Reader,
    Reading,
)
from engine.report.figures.effects import kl_reader, size_changes
from engine.report.figures.quantity import BITS, BYTES, COUNT, RATE, SHAPE, SIZE, WORD, YES_NO
from engine.report.figures.reading import of_row


def _listed(column: str, changes: Changes = "names") -> Reading:
    """A column of the session's layers, by its name."""

    def bind(context: Context) -> Reader:
        values: list[str] = getattr(context.session.layers, column)
        return values.__getitem__

    return of_row(bind, changes)


def _place(context: Context) -> Reader:
    return lambda row: row


def _marked(context: Context) -> Reader:
    names, marked = context.session.layers.names, context.marked
    return lambda row: names[row] in marked


def _changed(context: Context) -> Reader:
    session = context.session
    holds = session.layers.holds
    return lambda row: holds[row] != session.kept(row)


def _held(context: Context) -> Reader:
    return context.session.shown


def _bits_per_weight(context: Context) -> Reader:
    bits, shapes = context.session.layers.bits, context.session.layers.shapes

    def read(row: int) -> float | None:
        weights = math.prod(shapes[row])
        return bits[row] / weights if weights else None

    return read


def _bytes(context: Context) -> Reader:
    session = context.session
    layers, once = session.layers, session.head_in_embedding

    def read(row: int) -> float:
        return 0 if once and layers.roles[row] == "head" else layers.bits[row] / 8

    return read


def _size_change(context: Context) -> Reader:
    return size_changes(context.session, context.key.format)


def _kl_per_mb(context: Context) -> Reader:
    changes = size_changes(context.session, context.key.format)
    effect = kl_reader(context.session, context.key)

    def read(row: int) -> float | None:
        kl, change = effect(row), changes(row)
        if kl is None or change is None or not change < 0:
            return None
        return kl / (-change / 1e6)

    return read


def _params(context: Context) -> Reader:
    shapes = context.session.layers.shapes
    return lambda row: math.prod(shapes[row])


def _json(key: str, *documents: Document) -> tuple[JsonPath, ...]:
    return tuple(JsonPath(document, key) for document in documents)


IDENTITY: tuple[Figure, ...] = (
    Figure(
        id="layer", title="the model's own order", help="the layer's full name",
        quantity=WORD, read=_listed("names"),
        column=Column("layer", 20, 0, falling=False, left=True, sorted_by="place"),
        json=_json("name", "triage", "sweep", "diagnose"), csv=CsvName("layer", ALWAYS),
    ),
    Figure(
        id="place", title="place in the model", help="number of the row, in the model's own order",
        quantity=COUNT, read=of_row(_place, "names"),
    ),
    Figure(
        id="kind", title="kind", help="last part of the name",
        quantity=WORD, read=_listed("kinds"),
        json=_json("kind", "triage", "sweep"), csv=CsvName("kind", ALWAYS),
    ),
    Figure(
        id="block", title="block", help="number of its block; -1 for head and embedding",
        quantity=COUNT, read=_listed("blocks"),
        json=_json("block", "triage", "sweep"), csv=CsvName("block", ALWAYS),
    ),
    Figure(
        id="role", title="role", help="linear, conv1d, experts, head or embedding",
        quantity=WORD, read=_listed("roles"), csv=CsvName("role", ALWAYS),
    ),
    Figure(
        id="shape", title="number of weights", help="shape of the weight",
        quantity=SHAPE, read=_listed("shapes"),
        column=Column("shape", 13, 11, sorted_by="params"),
        json=_json("shape", "triage"), csv=CsvName("shape", ALWAYS),
    ),
    Figure(
        id="dtype", title="dtype", help="what the checkpoint stores it in",
        quantity=WORD, read=_listed("dtypes"),
        json=_json("dtype", "triage"), csv=CsvName("dtype", ALWAYS),
    ),
    Figure(
        id="marked", title="marked", help="whether it is marked for the next toggle",
        quantity=YES_NO, read=of_row(_marked, "marks"), csv=CsvName("marked", ALWAYS),
    ),
)  # fmt: skip

HOLDS: tuple[Figure, ...] = (
    Figure(
        id="holds", title="format held",
        help="the format in the recipe; else the format or dtype as stored",
        quantity=WORD, read=of_row(_held, "holds"),
        column=Column(
            " holds", 11, 0, falling=False, left=True,
            legend=("the format in your recipe; fp16 and the like are as stored",),
        ),
        csv=CsvName("holds"),
    ),
    Figure(
        id="changed", title="changed", help="whether it holds another format than it is stored in",
        quantity=YES_NO, read=of_row(_changed, "holds"), csv=CsvName("changed", ("holds",)),
    ),
    Figure(
        id="stored_bits", title="stored bits", help="bits of codes, scales and zero points",
        quantity=SIZE, read=_listed("bits", "holds"), csv=CsvName("stored_bits", ("bits",)),
    ),
    Figure(
        id="bits", title="bits per weight", help="bits per weight as the layer is held now",
        quantity=BITS, read=of_row(_bits_per_weight, "holds"),
        column=Column("bits", 5, 4), filter=FilterWord("<8", 6),
        csv=CsvName("bits_per_weight"),
    ),
    Figure(
        id="size", title="size", help="bytes as the layer is held now; 0 for a head that is stored "
        "as the embedding",
        quantity=BYTES, read=of_row(_bytes, "holds"),
        column=Column("size", 7, 6, legend=("of the layer in the file, as it is held now",)),
        filter=FilterWord(">1M", 9), csv=CsvName("size_bytes"),
    ),
    Figure(
        id="size_change", title="size change",
        help="bytes of the file with the layer in the shown format, less those as stored",
        quantity=BYTES, read=of_row(_size_change, "names"),
        column=Column(
            "change", 8, 8, falling=False,
            legend=("of the file, by that layer in the shown format",),
        ),
        csv=CsvName("size_change_bytes"),
    ),
    Figure(
        id="kl_per_mb", title="KL per MB",
        help="KL for each megabyte that the shown format saves, nats per token",
        quantity=RATE, read=of_row(_kl_per_mb),
        column=Column(
            "KL/MB", 6, 5,
            legend=("thousandths of KL for each megabyte that the shown format saves:",
                    "the least are the first to quantise, the most to keep"),
        ),
        filter=FilterWord(">1e-3", 10), csv=CsvName("kl_nats_per_token_per_mb"),
    ),
    Figure(
        id="params", title="number of weights", help="number of weights",
        quantity=COUNT, read=of_row(_params, "names"), filter=FilterWord(">1M", 7, common=True),
    ),
)  # fmt: skip
