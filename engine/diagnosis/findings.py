"""Findings: what stands out in a checkpoint, in sentences, with the figures behind them.

Each check is a function of `CHECKS`. A clean model has none but infos: thresholds are in the
profile, see `engine.diagnosis.thresholds`.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.diagnosis import of_activations, of_effects, of_stored, of_weights, rules
from engine.diagnosis.finding import ORDER, Check, Finding, Looked
from engine.diagnosis.thresholds import Thresholds, thresholds
from engine.session import Session

CHECKS: tuple[Check, ...] = (
    of_weights.not_finite,
    of_stored.stored_otherwise,
    of_stored.codes_and_scales,
    of_weights.outlier_channel,
    of_weights.two_heaps,
    of_weights.mixed_groups,
    of_weights.few_levels,
    of_weights.other_dtype,
    of_weights.narrow_mantissa,
    of_weights.denormals,
    of_weights.duplicates,
    of_weights.swapped,
    of_activations.input_channels,
    of_activations.unseen_experts,
    of_effects.fragile_outside,
    of_effects.fragile_layer,
    of_effects.end_blocks,
    of_effects.concentrated,
    of_activations.massive_token,
    of_activations.few_tokens,
    of_weights.dead_rows,
    rules.first_and_last,
    rules.kinds,
    rules.smaller_groups,
    rules.perplexity,
    rules.outlier_channels,
)
"""Every check, in the order in which equally severe findings are listed."""


def findings(session: Session, format: str, limits: Thresholds | None = None) -> list[Finding]:
    """Everything that stands out, the most severe first.

    Args:
        session: with weights, effects, or both; what is not known is not judged.
        format: canonical; whose effects are judged.
        limits: from where on a figure is a finding; None for those of the session's profile.
    """
    found: list[Finding] = []
    for some in findings_by_check(session, format, limits):
        found += some
    return by_order(found)


def by_order(found: list[Finding]) -> list[Finding]:
    """The most severe first."""
    return sorted(found, key=lambda each: ORDER[each.severity])


def findings_by_check(
    session: Session, format: str, limits: Thresholds | None = None
) -> Iterator[list[Finding]]:
    """The same one check after the other, so that a screen may draw in between."""
    looked = Looked(session, format, limits or thresholds(session))
    for check in CHECKS:
        yield list(check(looked))
