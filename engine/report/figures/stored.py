"""Figures of the codes of a layer that is stored quantised, from triage."""

from __future__ import annotations

from collections.abc import Callable

from engine.protocol import LayerWeights, StoredCodes
from engine.report.figures.declaration import (
    CsvName,
    Figure,
    FilterWord,
    JsonPath,
    PaneLine,
    Reading,
    Value,
)
from engine.report.figures.quantity import COUNT, NUMBER, SHARE, WORD
from engine.report.figures.reading import of_weights
from engine.session import Session


def _of(value: Callable[[StoredCodes], Value | None]) -> Reading:
    def read(known: LayerWeights, _: Session) -> Value | None:
        return None if known.codes is None else value(known.codes)

    return of_weights(read)


def _json(path: str) -> tuple[JsonPath, ...]:
    return (JsonPath("triage", f"stored.{path}"),)


def _zeros(codes: StoredCodes) -> Value | None:
    return None if codes.zero_min < 0 else f"{codes.zero_min} to {codes.zero_max}"


STORED: tuple[Figure, ...] = (
    Figure(
        id="stored_layout", title="layout", help="layout that the layer is stored in, if quantised",
        quantity=WORD, read=_of(lambda codes: codes.layout), json=_json("layout"),
    ),
    Figure(
        id="code_levels", title="codes", help="codes that a weight as stored may have",
        quantity=COUNT, read=_of(lambda codes: codes.levels or None), json=_json("levels"),
    ),
    Figure(
        id="unused_codes", title="unused codes", help="codes as stored that no weight has",
        quantity=COUNT, read=_of(lambda codes: codes.unused if codes.levels else None),
        filter=FilterWord(">0", 30), pane=PaneLine("weights", "unused codes", 8, line=4),
        json=_json("unused"), csv=CsvName("unused_codes", ()),
    ),
    Figure(
        id="saturated", title="saturated codes",
        help="share of the weights as stored at the first or the last code",
        quantity=SHARE, read=_of(lambda codes: codes.saturated if codes.levels else None),
        filter=FilterWord(">10%", 31), pane=PaneLine("weights", "saturated", 9, line=4),
        json=_json("saturated"), csv=CsvName("saturated", ()),
    ),
    Figure(
        id="scales", title="scales", help="number of scales as stored",
        quantity=COUNT, read=_of(lambda codes: codes.scales), json=_json("scales"),
    ),
    Figure(
        id="scale_min", title="smallest scale", help="smallest magnitude of a scale, but for 0",
        quantity=NUMBER, read=_of(lambda codes: codes.scale_min),
        pane=PaneLine("weights", "scales from", 10, line=5, text=lambda value: f"{value:.3g}"),
        json=_json("scale_min"), csv=CsvName("scale_min", ()),
    ),
    Figure(
        id="scale_max", title="largest scale", help="largest magnitude of a scale",
        quantity=NUMBER, read=_of(lambda codes: codes.scale_max),
        pane=PaneLine("weights", "to", 11, line=5, text=lambda value: f"{value:.3g}"),
        json=_json("scale_max"), csv=CsvName("scale_max", ()),
    ),
    Figure(
        id="bad_scales", title="bad scales", help="scales that are zero, NaN or infinite",
        quantity=COUNT, read=_of(lambda codes: codes.scales_zero + codes.scales_not_finite),
        filter=FilterWord(">0", 32), json=_json("bad_scales"), csv=CsvName("bad_scales", ()),
    ),
    Figure(
        id="zero_points", title="zero points", help="smallest and largest zero point as stored",
        quantity=WORD, read=_of(_zeros),
        pane=PaneLine("weights", "zero points", 12, line=5, text=str),
    ),
    Figure(
        id="zero_min", title="smallest zero point", help="smallest zero point as stored",
        quantity=COUNT, read=_of(lambda codes: codes.zero_min if codes.zero_min >= 0 else None),
        json=_json("zero_min"), csv=CsvName("zero_min", ()),
    ),
    Figure(
        id="zero_max", title="largest zero point", help="largest zero point as stored",
        quantity=COUNT, read=_of(lambda codes: codes.zero_max if codes.zero_min >= 0 else None),
        json=_json("zero_max"), csv=CsvName("zero_max", ()),
    ),
)  # fmt: skip
