"""Parts that several documents share: checkpoint, protocol, control, fallbacks, time spent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from msgspec import UnsetType

from engine import protocol as p
from engine.report import schema as s
from engine.report.characters import printable
from engine.report.tables.cells import figure, ppl
from engine.report.wording import clock, count, size

NAMED = 5
"""Layers that a line about several names."""
BLOCK = re.compile(r"\.\d+\.")
"""The number of a block in a layer's name: reasons that differ by it alone are the same."""


def about(model: s.Model) -> str:
    """The checkpoint in a line."""
    return (
        f"{printable(model.name)}: {count(model.params)} parameters, {size(model.bytes)}, "
        f"fingerprint {printable(model.fingerprint[:12])}"
    )


def protocol_lines(protocol: p.Protocol, baseline: s.BaselinePart | UnsetType) -> str:
    """The unchanged model's score, and the protocol of every figure."""
    cut = f"window {protocol.seq_len}"
    if protocol.stride != protocol.seq_len - 1:
        cut += f", {protocol.stride} targets of each"
    lines = [
        f"text: {printable(protocol.text_read)}, {protocol.tokens:,} tokens, {cut}; "
        f"{protocol.dtype} on {protocol.device}"
    ]
    if not isinstance(baseline, UnsetType):
        lines.insert(
            0, f"PPL {ppl(baseline.ppl)} unchanged (NLL {figure(baseline.nll, 4)} nats per token)"
        )
    return "\n".join(lines)


def control_line(control: s.ControlPart | UnsetType) -> str:
    """What a no-op measured."""
    if isinstance(control, UnsetType):
        return ""
    return (
        "control, a layer swapped for itself: "
        f"|ΔNLL| {_tiny(control.max_abs_dnll)}, KL {_tiny(control.max_abs_kl)} "
        f"(numeric floor: {_tiny(control.floor_dnll)}, {_tiny(control.floor_kl)})"
    )


def _tiny(value: s.Number) -> str:
    return "not finite" if value is None else f"{value:.1e}" if value else "0"


def additivity_lines(additivity: s.AdditivityPart | UnsetType) -> str:
    """How far single effects add up, one line per format."""
    if isinstance(additivity, UnsetType):
        return ""
    return "\n".join(
        f"additivity of {printable(format)}: {figure(found.kl, 2)} "
        f"(KL of {found.layers} layers together over the sum of their own)"
        for format, found in additivity.by_format.items()
    )


def fallback_lines(fallbacks: Iterable[s.LayerFallback]) -> str:
    """Layers that do not get the format asked for, in one line where all is the same of several."""
    return "\n".join(f"fallback: {each}" for each in fallback_sentences(fallbacks))


def fallback_sentences(fallbacks: Iterable[s.LayerFallback]) -> list[str]:
    """Layers that do not get the format asked for, once where all is the same of several."""
    alike: dict[tuple[str, str, str], list[s.LayerFallback]] = {}
    for each in fallbacks:
        why = BLOCK.sub(".*.", each.why)
        alike.setdefault((each.holds or "", each.format, why), []).append(each)
    return [
        f"{_some([each.layer for each in some])} {instead(holds, many=len(some) > 1)}, "
        f"not {printable(format)}: {printable(why if len(some) > 1 else some[0].why)}"
        for (holds, format, why), some in alike.items()
    ]


def _some(layers: Sequence[str]) -> str:
    """The first names of several layers, and how many more there are."""
    named = ", ".join(printable(layer) for layer in layers[:NAMED])
    more = len(layers) - NAMED
    return f"{named} and {more} more" if more > 0 else named


def instead(holds: str, *, many: bool = False) -> str:
    """What happens to a layer that cannot hold a format: it gets another, or is kept."""
    if many:
        return f"hold {printable(holds)}" if holds else "are kept"
    return f"holds {printable(holds)}" if holds else "is kept"


def spent(timings: dict[str, s.Number], resumed: int) -> str:
    """Seconds by what they were spent on, and the number of cached results."""
    parts = [
        f"{printable(name.removesuffix('_s'))} {_seconds(seconds)}"
        for name, seconds in timings.items()
        if seconds
    ]
    known = f"{resumed} results from the cache" if resumed else ""
    return "; ".join(part for part in (", ".join(parts), known) if part)


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else clock(seconds)
