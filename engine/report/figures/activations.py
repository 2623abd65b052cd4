"""Figures of what a layer is given and returns, over the calibration text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from engine.protocol import Activation, LayerActivations
from engine.report.figures.declaration import CsvName, Figure, FilterWord, JsonPath, Value
from engine.report.figures.quantity import ACTIVATION, COUNT, NUMBER, NUMBERS, Quantity
from engine.report.figures.reading import of_activations
from engine.session import Session


class _Of(NamedTuple):
    """A figure that inputs, outputs and what modules return have."""

    name: str
    title: str
    quantity: Quantity
    value: Callable[[Activation], Value | None]


_BOTH = (
    _Of("max", "largest magnitude", ACTIVATION, lambda x: x.max),
    _Of("mean", "mean magnitude", ACTIVATION, lambda x: x.mean),
    _Of("std", "standard deviation", ACTIVATION, lambda x: x.std),
    _Of("p99", "99th percentile of the magnitudes", ACTIVATION, lambda x: x.p99),
    _Of("ratio", "largest over mean magnitude", NUMBER, lambda x: x.ratio),
    _Of(
        "outlier_channels",
        "numbers of channels above six times the median channel, the largest first",
        NUMBERS,
        lambda x: x.outlier_channels,
    ),
    _Of("by_median", "channels above six times the median channel", COUNT, lambda x: x.by_median),
    _Of("by_mean", "channels above six times the mean channel", COUNT, lambda x: x.by_mean),
    _Of("massive_tokens", "tokens whose norm is 20 times the median", COUNT, lambda x: x.massive),
    _Of(
        "position",
        "place of the token with the largest norm in its window",
        COUNT,
        lambda x: x.position if x.position >= 0 else None,
    ),
    _Of("nonfinite", "numbers that are NaN or infinite", COUNT, lambda x: x.nonfinite),
)
_FILTERS = {"input_ratio": ">100", "input_by_median": ">0", "input_massive_tokens": ">0"}
"""Filter words, each with its example."""


_SIDES = {
    "input": "the layer's inputs",
    "output": "the layer's outputs",
    "module": "what the attention or MLP that ends with the layer returns",
}


def _figures() -> Iterator[Figure]:
    for side, whose in _SIDES.items():
        for of in _BOTH:
            id = f"{side}_{of.name}"
            example = _FILTERS.get(id)
            yield Figure(
                id=id,
                title=f"{side}: {of.title}",
                help=f"{of.title}, of {whose}",
                quantity=of.quantity,
                read=of_activations(_reader(side, of.value)),
                filter=None if example is None else FilterWord(example, 20),
                json=(JsonPath("triage", f"{side}.{of.name}"),),
                csv=CsvName(id, ()),
            )
    yield Figure(
        id="expert_tokens",
        title="tokens of each expert",
        help="tokens of the calibration text given to each expert",
        quantity=NUMBERS,
        read=of_activations(lambda known, _: tuple(known.expert_tokens) or None),
        json=(JsonPath("triage", "expert_tokens"),),
    )


def _reader(
    side: str, value: Callable[[Activation], Value | None]
) -> Callable[[LayerActivations, Session], Value | None]:
    def read(known: LayerActivations, _: Session) -> Value | None:
        sides = {"input": known.input, "output": known.output, "module": known.module_output}
        found = sides[side]
        return None if found is None else value(found)

    return read


ACTIVATIONS: tuple[Figure, ...] = tuple(_figures())
