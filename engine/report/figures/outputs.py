"""Figures of the error of a layer's outputs, in the format that it holds in the recipe."""

from __future__ import annotations

from engine.protocol import OutputError
from engine.report.figures.declaration import Column, CsvName, Figure, FilterWord, JsonPath
from engine.report.figures.quantity import COUNT, NUMBERS, SHARE
from engine.report.figures.reading import of_output


def _json(key: str) -> tuple[JsonPath, ...]:
    return (JsonPath("diagnose", f"clipping.{key}"),)


def _of_experts(error: OutputError, values: list[int]) -> tuple[int, ...] | None:
    return tuple(values) if error.worst_experts or error.unseen_experts else None


OUTPUTS: tuple[Figure, ...] = (
    Figure(
        id="output_error", title="output error",
        help="relative error of the layer's outputs in the format held, on the model's own inputs",
        quantity=SHARE, read=of_output(lambda error, _: error.relative),
        column=Column(
            "out err", 7, 12,
            legend=(
                "of the outputs, in the format held: norm of the difference",
                "over norm, and channels whose own error is above 10%",
            ),
        ),
        filter=FilterWord(">5%", 21),
        json=_json("relative"), csv=CsvName("output_error"),
    ),
    Figure(
        id="channels_over_10", title="channels above 10%",
        help="output channels whose error is above 10%, in the format held",
        quantity=COUNT, read=of_output(lambda error, _: error.over_10),
        column=Column("ch>10%", 7, 13), filter=FilterWord(">0", 22),
        json=_json("over_10"), csv=CsvName("channels_over_10"),
    ),
    Figure(
        id="channels_over_50", title="channels above 50%",
        help="output channels whose error is above 50%, in the format held",
        quantity=COUNT, read=of_output(lambda error, _: error.over_50),
        filter=FilterWord(">0", 23),
        json=_json("over_50"), csv=CsvName("channels_over_50", ("channels_over_10",)),
    ),
    Figure(
        id="output_channels", title="output channels",
        help="output channels that have an error; those of all experts that got tokens",
        quantity=COUNT, read=of_output(lambda error, _: error.channels),
        json=_json("channels"), csv=CsvName("output_channels", ("channels_over_10",)),
    ),
    Figure(
        id="worst_output_channels", title="worst output channels",
        help="numbers of the output channels with the largest errors, the worst first",
        quantity=NUMBERS, read=of_output(lambda error, _: tuple(error.worst)),
        json=_json("worst_channels"),
    ),
    Figure(
        id="worst_output_experts", title="experts of the worst output channels",
        help="experts that the worst output channels belong to",
        quantity=NUMBERS,
        read=of_output(lambda error, _: _of_experts(error, error.worst_experts)),
        json=_json("worst_experts"),
    ),
    Figure(
        id="worst_output_error", title="error of the worst output channel",
        help="error of the worst output channel, mean difference over mean magnitude",
        quantity=SHARE,
        read=of_output(lambda error, _: error.worst_errors[0] if error.worst_errors else 0.0),
        json=_json("worst_error"), csv=CsvName("worst_output_error", ("output_error",)),
    ),
    Figure(
        id="unseen_experts", title="experts without tokens",
        help="experts that no token of the evaluation text was given to",
        quantity=COUNT, read=of_output(lambda error, _: error.unseen_experts or None),
        json=_json("unseen_experts"),
    ),
    Figure(
        id="nonfinite_outputs", title="channels not finite",
        help="output channels with an output that is not finite",
        quantity=COUNT, read=of_output(lambda error, _: error.nonfinite),
        json=_json("nonfinite"),
    ),
)  # fmt: skip
