"""What was tried on layers before, as the store has it: nothing is measured."""

from __future__ import annotations

from collections.abc import Iterable

from engine.formats.grammar import parse_format
from engine.measure.calibration.calibration import need_calibration
from engine.measure.counts import JobCounts
from engine.measure.fixes.addresses import effect_address, tried_address
from engine.measure.sweep.exactness import DIAGNOSED
from engine.service.jobs import Steps
from engine.workspace import Loaded

AT_ONCE = 200
"""Addresses that are worked out between two yields."""


def known_fixes(loaded: Loaded, wanted: Iterable[tuple[str, str]]) -> Steps:
    """Announce what any run has stored of layers in formats.

    Args:
        loaded: the model.
        wanted: layers, each with a canonical format; those that the model does not have are left
            out.

    Yields:
        `Learned` with `FormatTried` and `Sensitivity` facts.

    Raises:
        TextError: the calibration text cannot be read.
    """
    counts = JobCounts()
    pairs = [
        (layer, parse_format(format)) for layer, format in wanted if layer in loaded.network.layers
    ]
    if not pairs:
        return counts.outcome()
    calibration = yield from need_calibration(loaded)
    addresses: list[str] = []
    instead: dict[str, str] = {}
    for at, (layer, fmt) in enumerate(pairs):
        whole = yield from effect_address(loaded, layer, fmt)
        instead[whole] = yield from effect_address(loaded, layer, fmt, DIAGNOSED)
        addresses += [tried_address(loaded, layer, fmt, calibration), whole, instead[whole]]
        if at % AT_ONCE == AT_ONCE - 1:
            yield None
    known = loaded.known(addresses)
    for whole, some in instead.items():
        if whole in known:
            known.pop(some, None)  # all windows tell more than some of them
    yield from counts.found(list(known), list(known.values()))
    return counts.outcome()
