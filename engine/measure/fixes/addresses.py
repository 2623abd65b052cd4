"""Where the store has what was tried on a layer: its errors in a format, and its effect."""

from __future__ import annotations

from engine.formats.grammar import Format
from engine.measure.calibration.block_inputs import Events
from engine.measure.calibration.calibration import Calibration, calibration_key, with_scales
from engine.measure.sweep.candidates import SweepTable, figure_key
from engine.measure.sweep.units import Unit
from engine.store import keys
from engine.workspace import Loaded


def tried_address(loaded: Loaded, layer: str, fmt: Format, calibration: Calibration) -> str:
    """Content address of a `FormatTried`."""
    part = with_scales(loaded, calibration.key("reference"), {layer: fmt})
    assert part is not None
    return keys.FormatTried(
        on=loaded.opened.files,
        layer=layer,
        format=str(fmt),
        dtype=loaded.protocol.dtype,
        device=loaded.protocol.device.split(":")[0],
        scale_dtype=loaded.scale_dtype,
        calibration=part,
    ).address


def effect_table(loaded: Loaded, layer: str, fmt: Format) -> Events[tuple[SweepTable, Unit]]:
    """The table and the unit that a sweep has for a layer changed alone."""
    found = loaded.network.layers[layer]
    body = found.role not in ("embedding", "head")
    calibration = yield from calibration_key(loaded, [fmt], "reference")
    table = SweepTable(fmt, "degrade", "layer", calibration)
    return table, Unit(layer, (layer,), found.start, body)


def effect_address(loaded: Loaded, layer: str, fmt: Format, exactness: str = "") -> Events[str]:
    """Content address of a sweep's `Sensitivity` of a layer changed alone; see `figure_key`."""
    table, unit = yield from effect_table(loaded, layer, fmt)
    return figure_key(loaded, unit, table, exactness)
