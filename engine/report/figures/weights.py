"""Figures of a layer's weights, from triage: errors by format, outliers, faults."""

from __future__ import annotations

from engine.report.figures.declaration import (
    Column,
    CsvName,
    ExpertValues,
    Figure,
    FilterWord,
    JsonPath,
    PaneLine,
)
from engine.report.figures.quantity import COUNT, DECIBEL, DEVIATIONS, NUMBER, SHARE, WEIGHT
from engine.report.figures.reading import of_error, of_weights
from engine.report.wording import short

UNSHOWN: tuple[str, ...] = ()
"""Saved only when every figure is requested, with no column of the table."""


def _json(path: str) -> tuple[JsonPath, ...]:
    return (JsonPath("triage", path),)


ERRORS: tuple[Figure, ...] = (
    Figure(
        id="error", title="weight error", help="relative weight error in the shown format",
        quantity=SHARE, read=of_error(lambda error, _: error.relative),
        column=Column(
            "error", 6, 2, legend=("of the weights: norm of the difference over norm",)
        ),
        filter=FilterWord(">5%", 3, common=True), pane=PaneLine("errors", "relative", 0),
        json=_json("errors.*.relative"), csv=CsvName("relative_error"),
        experts=ExpertValues(
            lambda found, format: found.relative.get(format, ()),
            "relative_error", 4, by_format=True,
        ),
    ),
    Figure(
        id="sqnr", title="SQNR", help="signal to quantisation noise, decibels",
        quantity=DECIBEL, read=of_error(lambda error, _: error.sqnr_db),
        pane=PaneLine("errors", "SQNR", 1),
        json=_json("errors.*.sqnr_db"), csv=CsvName("sqnr_db", ("error",)),
    ),
    Figure(
        id="max_abs_error", title="largest error", help="largest absolute error of a weight",
        quantity=WEIGHT, read=of_error(lambda error, _: error.max_abs),
        pane=PaneLine("errors", "largest", 2),
        json=_json("errors.*.max_abs"), csv=CsvName("max_abs_error", ("error",)),
    ),
    Figure(
        id="mean_abs_error", title="mean error", help="mean absolute error of a weight",
        quantity=WEIGHT, read=of_error(lambda error, _: error.mean_abs),
        json=_json("errors.*.mean_abs"), csv=CsvName("mean_abs_error", ("error",)),
    ),
    Figure(
        id="frobenius_error", title="norm of the error", help="Frobenius norm of the error",
        quantity=WEIGHT, read=of_error(lambda error, _: error.frobenius),
        json=_json("errors.*.frobenius"),
    ),
)  # fmt: skip

OUTLIERS: tuple[Figure, ...] = (
    Figure(
        id="outliers", title="share of outliers", help="share of weights far out",
        quantity=SHARE, read=of_weights(lambda known, _: known.outliers.fraction),
        column=Column(
            ">σ", 6, 3, legend=("share of weights beyond so many standard deviations",)
        ),
        filter=FilterWord(">.1%", 4, common=True), pane=PaneLine("weights", "outliers", 0, line=0),
        json=_json("outliers.fraction"), csv=CsvName("outlier_fraction"),
        experts=ExpertValues(lambda found, format: found.outliers, "outlier_fraction", 2),
    ),
    Figure(
        id="outlier_count", title="number of outliers", help="number of weights far out",
        quantity=COUNT, read=of_weights(lambda known, _: known.outliers.count),
        json=_json("outliers.count"), csv=CsvName("outlier_count", ("outliers",)),
    ),
    Figure(
        id="outlier_sigma", title="bound of outliers",
        help="standard deviations beyond which a weight is far out",
        quantity=DEVIATIONS, read=of_weights(lambda known, _: known.outliers.sigma),
        json=_json("outliers.sigma"), csv=CsvName("outlier_sigma", ("outliers",)),
    ),
    Figure(
        id="max_abs", title="largest weight", help="largest absolute value",
        quantity=WEIGHT, read=of_weights(lambda known, _: known.outliers.max_abs),
        pane=PaneLine("weights", "max", 1, line=0),
        json=_json("outliers.max_abs"), csv=CsvName("max_abs", ("outliers",)),
        experts=ExpertValues(lambda found, format: found.max_abs, "max_abs", 1),
    ),
    Figure(
        id="kurtosis", title="kurtosis", help="excess kurtosis of the weights",
        quantity=NUMBER, read=of_weights(lambda known, _: known.kurtosis),
        column=Column("kurt", 5, 9, quiet=True), filter=FilterWord(">3", 5),
        pane=PaneLine("weights", "kurtosis", 3, line=0, text=lambda value: short(value, small=1)),
        json=_json("kurtosis"), csv=CsvName("kurtosis"),
    ),
)  # fmt: skip

HEALTH: tuple[Figure, ...] = (
    Figure(
        id="worst_column", title="largest input channel",
        help="number of the input channel with the largest weight",
        quantity=COUNT,
        read=of_weights(lambda known, _: known.worst_column if known.worst_column >= 0 else None),
        pane=PaneLine("weights", "largest input channel", 6, line=2),
        csv=CsvName("worst_column", UNSHOWN),
    ),
    Figure(
        id="worst_column_sigma", title="reach of the largest input channel",
        help="largest weight of that channel, standard deviations",
        quantity=DEVIATIONS,
        read=of_weights(
            lambda known, _: known.worst_column_sigma if known.worst_column >= 0 else None
        ),
        csv=CsvName("worst_column_sigma", UNSHOWN),
    ),
    Figure(
        id="mean", title="mean", help="mean of the weights",
        quantity=WEIGHT, read=of_weights(lambda known, _: known.mean),
        csv=CsvName("mean", UNSHOWN),
    ),
    Figure(
        id="std", title="standard deviation", help="standard deviation of the weights",
        quantity=WEIGHT, read=of_weights(lambda known, _: known.std),
        pane=PaneLine("weights", "std", 2, line=0), csv=CsvName("std", UNSHOWN),
        experts=ExpertValues(lambda found, format: found.std, "std", 0),
    ),
    Figure(
        id="range_ratio", title="range", help="range of the weights over that without outliers",
        quantity=NUMBER, read=of_weights(lambda known, _: known.range_ratio),
        pane=PaneLine("weights", "range", 4, line=1),
        json=_json("range_ratio"), csv=CsvName("range_ratio", UNSHOWN),
    ),
    Figure(
        id="waste", title="waste", help="share of a uniform grid spent on outliers",
        quantity=SHARE, read=of_weights(lambda known, _: known.waste),
        pane=PaneLine("weights", "wasted", 5, line=1),
        json=_json("waste"), csv=CsvName("waste", UNSHOWN),
    ),
    Figure(
        id="nan", title="NaN", help="number of weights that are NaN",
        quantity=COUNT, read=of_weights(lambda known, _: known.nan),
        json=_json("nan"), csv=CsvName("nan", UNSHOWN),
    ),
    Figure(
        id="inf", title="inf", help="number of weights that are infinite",
        quantity=COUNT, read=of_weights(lambda known, _: known.inf),
        json=_json("inf"), csv=CsvName("inf", UNSHOWN),
    ),
    Figure(
        id="nonfinite", title="NaN or inf", help="number of weights that are NaN or infinite",
        quantity=COUNT, read=of_weights(lambda known, _: known.nan + known.inf),
        experts=ExpertValues(lambda found, format: found.nonfinite, "nonfinite", 3),
    ),
    Figure(
        id="zero_rows", title="zero rows", help="number of rows that are all zero",
        quantity=COUNT, read=of_weights(lambda known, _: known.zero_rows),
        json=_json("zero_rows"), csv=CsvName("zero_rows", UNSHOWN),
    ),
    Figure(
        id="dead_columns", title="ignored inputs", help="number of input channels all zero",
        quantity=COUNT, read=of_weights(lambda known, _: known.dead_columns),
        csv=CsvName("dead_columns", UNSHOWN),
    ),
    Figure(
        id="denormals", title="denormals", help="number of weights that are denormal",
        quantity=COUNT, read=of_weights(lambda known, _: known.denormals),
        pane=PaneLine("weights", "denormals", 7, line=3, text=lambda value: f"{value:,}",
                      unless_zero=True),
        csv=CsvName("denormals", UNSHOWN),
    ),
)  # fmt: skip
