"""A figure: how far the mean of a layer's weights is from zero."""

from __future__ import annotations

from engine.protocol import LayerWeights
from engine.report.figures import (
    Column,
    CsvName,
    Figure,
    FilterWord,
    JsonPath,
    PaneLine,
    register_figure,
)
from engine.report.figures.quantity import SHARE
from engine.report.figures.reading import of_weights
from engine.session import Session


def skew(known: LayerWeights, session: Session) -> float | None:
    """Absolute mean over the standard deviation; None where all weights are equal."""
    return abs(known.mean) / known.std if known.std else None


SKEW = Figure(
    id="skew",
    title="asymmetry",
    help="absolute mean over the standard deviation",
    quantity=SHARE,
    read=of_weights(skew),
    column=Column("skew", width=6, legend=("mean over standard deviation",)),
    filter=FilterWord(">.5%", common=True),
    pane=PaneLine("weights", "asymmetry"),
    json=(JsonPath("triage", "figures.skew"),),
    csv=CsvName("skew"),
)


def register() -> None:
    register_figure(SKEW)
