"""Findings of layers that are stored quantised: what their codes and scales say by themselves."""

from __future__ import annotations

from collections.abc import Iterator

from engine import protocol as p
from engine.diagnosis.finding import Finding, Looked

SIGNED = ("mlx", "quanto", "torchao", "hqq", "exl3")
"""Layouts whose scales may be negative."""
WASTED = 0.5
"""Share of the codes that a quantiser leaves unused only if its scales are too large."""
FEWEST = 8
"""Codes from which on that means anything."""
MANY = 100
"""Weights for each code from which on that is no chance."""


def stored_otherwise(looked: Looked) -> Iterator[Finding]:
    """Layers that are stored in another way than the config says."""
    found = [known for _, known in looked.weights if known.codes and known.codes.declared]
    if not found or (codes := found[0].codes) is None:
        return
    yield Finding(
        id="stored-otherwise",
        severity="alert",
        layer=found[0].layer if len(found) == 1 else "",
        sentence=f"{len(found)} layers are stored as {codes.read_as}, declared {codes.declared}: "
        "readers that trust the config are off by one step everywhere",
        evidence={"layers": len(found)},
    )


def bad_scales(looked: Looked) -> Iterator[Finding]:
    """Scales that no quantiser writes."""
    for row, known in looked.weights:
        codes = known.codes
        if codes is None:
            continue
        negative = 0 if codes.layout in SIGNED else codes.scales_negative
        bad = codes.scales_zero + codes.scales_not_finite + negative
        if not bad:
            continue
        kinds = (
            (codes.scales_not_finite, "NaN or infinite"),
            (codes.scales_zero, "zero"),
            (negative, "negative"),
        )
        said = " and ".join(f"{count:,} are {name}" for count, name in kinds if count)
        empty = codes.scales_zero == bad and _all_zero(looked, row, known)
        yield Finding(
            id="bad-scales",
            severity="note" if empty else "alert",
            layer=known.layer,
            sentence=f"of {codes.scales:,} scales {said}: the file is damaged, or its quantiser "
            "failed on this layer",
            evidence={"scales": bad, "of": codes.scales},
        )


def _all_zero(looked: Looked, row: int, known: p.LayerWeights) -> bool:
    """Whether every scale of 0 may be that of a row of zeros."""
    codes = known.codes
    return codes is not None and codes.scales_zero <= known.zero_rows * (
        codes.scales // max(1, looked.session.layers.shapes[row][-2])
    )


def wasted_codes(looked: Looked) -> Iterator[Finding]:
    """Layers that leave most of their codes unused."""
    for row, known in looked.weights:
        codes = known.codes
        if codes is None or codes.levels < FEWEST or codes.unused < WASTED * codes.levels:
            continue
        weights = 1
        for size in looked.session.layers.shapes[row]:
            weights *= size
        if weights < MANY * codes.levels:
            continue
        yield Finding(
            id="wasted-codes",
            severity="warning",
            layer=known.layer,
            sentence=f"no weight has {codes.unused} of its {codes.levels} codes: its scales are "
            "too large, or those of another layer",
            evidence={"unused": codes.unused, "levels": codes.levels},
        )
