"""The error of a recipe inside the model: what is known of it, and what is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from engine.errors import UsageError
from engine.formats.grammar import Format, needs_calibration, parse_format
from engine.measure.calibration.block_inputs import Events
from engine.measure.calibration.calibration import calibration_key, with_scales
from engine.measure.counts import JobCounts
from engine.measure.errors.block_by_block import block_by_block
from engine.measure.errors.outputs import OutputErrors
from engine.measure.errors.run import Run
from engine.measure.errors.whole_forwards import whole_forwards
from engine.store import keys
from engine.workspace import Loaded

TOKENS = 4096
"""Tokens that are used: the first windows that have as many, or all."""


def measure_errors(loaded: Loaded, layers: Mapping[str, str], counts: JobCounts) -> Events[None]:
    """Measure errors of outputs, drift and attention of a recipe.

    Args:
        loaded: the model.
        layers: formats by name of the layers that are not kept.
        counts: of the job.

    Yields:
        `Learned` with an `OutputError` of every layer of the recipe and, last, its `Drift`;
        `Progress`.

    Raises:
        UsageError: an unknown layer, or no layer at all.
        FormatError: see `approximated`.
        TextError: the calibration text cannot be read.
    """
    network = loaded.network
    if not layers:
        raise UsageError("every layer is as stored: give some layer a format first")
    if unknown := [name for name in layers if name not in network.layers]:
        raise UsageError(f"the model has no layer {unknown[0]!r}")
    formats = {name: parse_format(text) for name, text in sorted(layers.items())}
    ids = first_windows(loaded)
    addresses = yield from _addresses(loaded, formats, ids.numel())
    known = loaded.known(list(addresses.values()))
    have = {key: known[key] for key in addresses.values() if key in known}
    yield from counts.found(list(have), list(have.values()))
    left = {name: key for name, key in addresses.items() if key not in have}
    if not left:
        return
    outputs = OutputErrors(network, formats, [name for name in left if name], left)
    run = Run(loaded, formats, ids, outputs, counts)
    by_block = block_by_block if network.resumable else whole_forwards
    drift = yield from by_block(run)
    if "" in left:
        yield counts.learnt(left[""], drift)


def first_windows(loaded: Loaded) -> Tensor:
    """The windows that errors are measured on, ``[windows, seq_len]``."""
    windows = loaded.windows
    return windows.ids[: max(1, math.ceil(TOKENS / windows.seq_len))]


def _addresses(
    loaded: Loaded, formats: Mapping[str, Format], tokens: int
) -> Events[dict[str, str]]:
    """Keys of the facts, by layer; that of the drift under an empty name."""
    recipe = {name: str(format) for name, format in formats.items()}
    calibration = yield from calibration_key(loaded, formats.values(), "sequential")
    found = {}
    for name, format in formats.items():
        calibrated = needs_calibration(format)
        found[name] = keys.OutputError(
            on=loaded.evaluation,
            layer=name,
            format=str(format),
            scale_dtype=loaded.scale_dtype,
            tokens=tokens,
            recipe=recipe if calibrated else {},
            calibration=with_scales(loaded, calibration, formats) if calibrated else None,
        ).address
    found[""] = keys.Drift(
        on=loaded.evaluation,
        recipe=recipe,
        scale_dtype=loaded.scale_dtype,
        tokens=tokens,
        seed=loaded.settings.seed,
        calibration=with_scales(loaded, calibration, formats),
    ).address
    return found
