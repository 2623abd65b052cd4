"""Figures of what to do with a layer: its place, its share of the damage, the advised format."""

from __future__ import annotations

from engine.diagnosis.advice import Advice, adviser, category
from engine.report.figures.declaration import (
    Column,
    Context,
    CsvName,
    Figure,
    FilterWord,
    JsonPath,
    Reader,
    Value,
)
from engine.report.figures.quantity import BITS, SHARE, WORD
from engine.report.figures.reading import of_row


def _category(context: Context) -> Reader:
    return lambda row: category(context.session, row)


def _share(context: Context) -> Reader:
    session, key = context.session, context.key
    return lambda row: adviser(session, key.format).share(row) if _advises(context) else None


def _advises(context: Context) -> bool:
    return context.key.direction == "degrade" and bool(context.key.format)


def advised(context: Context, row: int) -> Advice | None:
    """The advice for a row, by the effects that are shown; None for those of restore."""
    if not _advises(context):
        return None
    return adviser(context.session, context.key.format, context.serving).advice(row)


def _format(context: Context) -> Reader:
    def read(row: int) -> Value | None:
        found = advised(context, row)
        return None if found is None else found.format or context.session.kept(row)

    return read


def _advised_share(context: Context) -> Reader:
    def read(row: int) -> Value | None:
        found = advised(context, row)
        return None if found is None else found.share

    return read


def _bits(context: Context) -> Reader:
    def read(row: int) -> Value | None:
        found = advised(context, row)
        return None if found is None else found.bits

    return read


def _json(path: str) -> tuple[JsonPath, ...]:
    return (JsonPath("sweep", path),)


ADVICE: tuple[Figure, ...] = (
    Figure(
        id="category", title="place and part",
        help="first, middle or last block, and attention, MLP or experts; or head, or embedding",
        quantity=WORD, read=of_row(_category, "names"),
        column=Column("part", 16, 15, falling=False, left=True, quiet=True),
        json=(JsonPath("triage", "category"), JsonPath("sweep", "category")),
        csv=CsvName("category"),
    ),
    Figure(
        id="damage", title="share of the damage",
        help="KL of the layer alone over that of all of the body, in the shown format",
        quantity=SHARE, read=of_row(_share),
        filter=FilterWord(">5%", 23), json=_json("share"), csv=CsvName("share_of_damage"),
    ),
    Figure(
        id="advice", title="advised format",
        help="smallest known format that keeps the layer's share of the damage below the "
        "profile's bound",
        quantity=WORD, read=of_row(_format),
        column=Column(
            "advice", 10, 14, left=True, sorted_by="advised_bits",
            legend=("smallest format that keeps the layer's damage below an even",
                    "share of what the shown format costs everywhere"),
        ),
        json=_json("advice.format"), csv=CsvName("advised_format"),
    ),
    Figure(
        id="advised_bits", title="bits of the advised format",
        help="bits per weight of the advised format",
        quantity=BITS, read=of_row(_bits), filter=FilterWord(">5", 24),
        json=_json("advice.bits"), csv=CsvName("advised_bits", ("advice",)),
    ),
    Figure(
        id="advised_share", title="share of the damage as advised",
        help="share of the damage that is left in the advised format",
        quantity=SHARE, read=of_row(_advised_share),
        json=_json("advice.share"), csv=CsvName("advised_share", ("advice",)),
    ),
)  # fmt: skip
