"""Findings of one layer's codes and scales, which need no original; no arrays."""

from __future__ import annotations

from collections.abc import Iterator

from engine import protocol as p
from engine.diagnosis.finding import Finding
from engine.diagnosis.thresholds import Thresholds

SIGNED = ("mlx", "quanto", "torchao", "hqq", "exl3", "GGUF")
"""Layouts whose scales may be negative."""
FEWEST = 8
"""Codes from which on it means anything that some are unused."""
MANY = 100
"""Weights for each code from which on that is no chance."""


def code_findings(
    layer: str, codes: p.StoredCodes, weights: int, zero_rows: int, out: int, limits: Thresholds
) -> Iterator[Finding]:
    """Everything that stands out of the codes of a layer.

    Args:
        layer: its name.
        codes: how they are used.
        weights: how many it has.
        zero_rows: rows of zeros.
        out: rows.
        limits: from where on a figure is a finding.
    """
    yield from bad_scales(layer, codes, zero_rows, out)
    yield from bad_codes(layer, codes)
    yield from subnormal_scales(layer, codes, limits)
    yield from wasted_codes(layer, codes, weights, limits)
    yield from clipped_codes(layer, codes, limits)
    yield from wrapped_zeros(layer, codes)


def bad_scales(layer: str, codes: p.StoredCodes, zero_rows: int, out: int) -> Iterator[Finding]:
    """Scales that no quantiser writes; those of rows of zeros may be 0."""
    negative = 0 if codes.layout in SIGNED else codes.scales_negative
    bad = codes.scales_zero + codes.scales_not_finite + negative
    if not bad:
        return
    kinds = (
        (codes.scales_not_finite, "NaN or infinite"),
        (codes.scales_zero, "zero"),
        (negative, "negative"),
    )
    said = " and ".join(f"{count:,} are {name}" for count, name in kinds if count)
    empty = codes.scales_zero == bad and bad <= zero_rows * (codes.scales // max(1, out))
    yield Finding(
        id="bad-scales",
        severity="note" if empty else "alert",
        layer=layer,
        sentence=f"of {codes.scales:,} scales {said}: the file is damaged, or its quantiser "
        "failed on this layer",
        evidence={"scales": bad, "of": codes.scales},
    )


def bad_codes(layer: str, codes: p.StoredCodes) -> Iterator[Finding]:
    """Codes that are numbers in themselves, and not finite."""
    if codes.codes_not_finite:
        yield Finding(
            id="bad-codes",
            severity="alert",
            layer=layer,
            sentence=f"{codes.codes_not_finite:,} codes are NaN: the file is damaged, or weights "
            "overflowed as they were cast",
            evidence={"codes": codes.codes_not_finite},
        )


def subnormal_scales(layer: str, codes: p.StoredCodes, limits: Thresholds) -> Iterator[Finding]:
    """Scales too small for their dtype."""
    share = codes.scales_subnormal / codes.scales if codes.scales else 0.0
    if share > limits.subnormal_scales:
        yield Finding(
            id="subnormal-scales",
            severity="warning",
            layer=layer,
            sentence=f"{share:.0%} of its scales are below the normal numbers of their dtype, "
            f"from {codes.scale_min:.2g}: they are rounded coarsely, and some engines flush them "
            "to zero",
            evidence={"share": share, "scale_min": codes.scale_min},
        )


def wasted_codes(
    layer: str, codes: p.StoredCodes, weights: int, limits: Thresholds
) -> Iterator[Finding]:
    """A layer that leaves most of its codes unused."""
    if codes.levels < FEWEST or codes.unused < limits.wasted_codes * codes.levels:
        return
    if weights >= MANY * codes.levels:
        yield Finding(
            id="wasted-codes",
            severity="warning",
            layer=layer,
            sentence=f"no weight has {codes.unused} of its {codes.levels} codes: its scales are "
            "too large, or those of another layer",
            evidence={"unused": codes.unused, "levels": codes.levels},
        )


def clipped_codes(layer: str, codes: p.StoredCodes, limits: Thresholds) -> Iterator[Finding]:
    """A layer with most of its weights at the ends of the grid."""
    if codes.ordered and codes.levels >= 2 * FEWEST and codes.saturated > limits.clipped_codes:
        yield Finding(
            id="clipped-codes",
            severity="warning",
            layer=layer,
            sentence=f"{codes.saturated:.0%} of its weights are at the first or the last of "
            f"{codes.levels} codes: its scales are too small, or those of another layer",
            evidence={"saturated": codes.saturated, "levels": codes.levels},
        )


def wrapped_zeros(layer: str, codes: p.StoredCodes) -> Iterator[Finding]:
    """Zero points that readers of GPTQ's version 1 take for two different numbers."""
    if codes.zeros_wrapped:
        yield Finding(
            id="wrapped-zeros",
            severity="note",
            layer=layer,
            sentence=f"{codes.zeros_wrapped:,} zero points are stored as {codes.levels - 1}, which "
            f"GPTQModel reads as 0, and AutoGPTQ's Marlin and Triton kernels as {codes.levels}",
            evidence={"zeros": codes.zeros_wrapped},
        )
