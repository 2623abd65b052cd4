"""Findings: what stands out in a checkpoint, in sentences, with the figures behind them.

Each check is a function of `CHECKS`. A clean model has no finding: thresholds are those of
`engine.diagnosis.thresholds`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import msgspec

from engine import protocol as p
from engine.diagnosis.fixes import best_fix, layer_fixes
from engine.diagnosis.thresholds import Thresholds
from engine.formats.storage import can_hold
from engine.session import KnownEffects, Session
from engine.session.artefact import OUTSIDE

Severity: TypeAlias = Literal["alert", "warning", "note"]
"""An alert spoils figures or the model; a warning costs quality; a note is worth knowing."""
ORDER: dict[Severity, int] = {"alert": 0, "warning": 1, "note": 2}


class Fix(msgspec.Struct, frozen=True, kw_only=True):
    """The cheapest format that wins back most of a layer's KL."""

    format: str
    """Empty for as stored."""
    kl: float
    """Of the layer alone in it, nats per token."""
    kl_se: float
    measured: bool
    """Whether ``kl`` was measured."""
    recovered: float
    """Share of the layer's KL that it wins back."""
    bits: float
    """Stored bits per weight that it takes more."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that stands out."""

    id: str
    """The check's name."""
    severity: Severity
    layer: str = ""
    """Empty where it is about several."""
    channels: tuple[int, ...] = ()
    """Input channels."""
    sentence: str
    evidence: dict[str, float] = {}
    """The figures behind it, by name."""
    fix: Fix | None = None


@dataclass
class Looked:
    """A session as checks look at it."""

    session: Session
    format: str
    """Whose effects are judged."""
    limits: Thresholds

    @cached_property
    def effects(self) -> KnownEffects:
        """Effects of single layers."""
        return KnownEffects(self.session)

    @cached_property
    def kl(self) -> dict[str, float]:
        """Known effects of the format, by layer; those filled in from other formats are not."""
        found: dict[str, float] = {}
        for name in self.session.layers.names:
            known = self.effects.known(name, self.format)
            if known is not None:
                found[name] = max(0.0, known.kl)
        return found

    @cached_property
    def body(self) -> list[str]:
        """Layers of the body with a known effect."""
        layers = self.session.layers
        return [n for n in self.kl if layers.roles[self.session.index[n]] not in OUTSIDE]

    @cached_property
    def whole(self) -> bool:
        """Whether the effects of all layers of the body that can hold the format are known."""
        layers = self.session.layers
        holding = sum(
            role not in OUTSIDE and can_hold(self.format, shape)
            for role, shape in zip(layers.roles, layers.shapes, strict=True)
        )
        return 0 < holding == len(self.body)

    @cached_property
    def damage(self) -> float:
        """KL of the body's layers together, as a sum."""
        return math.fsum(self.kl[name] for name in self.body)

    def fix(self, layer: str) -> Fix | None:
        """The format that wins back enough of a layer's KL at the fewest bits."""
        session = self.session
        before = self.kl.get(layer)
        if not before:
            return None
        if layer in session.fixes:
            return self._tried(layer)
        row = session.index[layer]
        shape = session.layers.shapes[row]
        weights = math.prod(shape)
        now = session.bits_in(row, self.format)
        candidates: list[tuple[int, Fix]] = []
        known = [k.format for k in session.effects.known("degrade") if k.by == "layer"]
        for held in ("", *dict.fromkeys(known)):
            effect = self.effects.known(layer, held)
            if effect is None or held == self.format:
                continue
            recovered = 1 - max(0.0, effect.kl) / before
            if recovered < self.limits.wins_back:
                continue
            if held and not can_hold(held, shape):
                continue
            bits = session.bits_in(row, held)
            fix = Fix(
                format=held,
                kl=effect.kl,
                kl_se=effect.kl_se,
                measured=effect.measured,
                recovered=recovered,
                bits=(bits - now) / weights,
            )
            candidates.append((bits, fix))
        return min(candidates, key=lambda each: each[0])[1] if candidates else None

    def _tried(self, layer: str) -> Fix | None:
        """The best of the formats that were tried: a measured one where there is one."""
        session = self.session
        best = best_fix(layer_fixes(session, layer, self.format), self.format, self.limits)
        if best is None:
            return None
        row = session.index[layer]
        more = best.bits - session.bits_in(row, self.format)
        return Fix(
            format=best.format,
            kl=best.kl,
            kl_se=best.kl_se,
            measured=best.measured,
            recovered=best.recovered,
            bits=more / math.prod(session.layers.shapes[row]),
        )


Check: TypeAlias = Callable[[Looked], Iterator[Finding]]


def findings(session: Session, format: str, limits: Thresholds | None = None) -> list[Finding]:
    """Everything that stands out, the most severe first.

    Args:
        session: with weights, effects, or both; what is not known is not judged.
        format: canonical; whose effects are judged.
        limits: from where on a figure is a finding.
    """
    looked = Looked(session, format, limits or Thresholds())
    found = [each for check in CHECKS for each in check(looked)]
    return sorted(found, key=lambda each: ORDER[each.severity])


# --- of the weights ------------------------------------------------------------------------------


def not_finite(looked: Looked) -> Iterator[Finding]:
    """NaN or Inf among the weights."""
    for known in looked.session.layers.weights:
        if known is not None and (known.nan or known.inf):
            yield Finding(
                id="not-finite",
                severity="alert",
                layer=known.layer,
                sentence=f"{known.nan:,} NaN and {known.inf:,} Inf among its weights: the file is "
                "damaged, or was saved from a run that diverged",
                evidence={"nan": known.nan, "inf": known.inf},
            )


def dead_rows(looked: Looked) -> Iterator[Finding]:
    """Outputs or inputs that are all zero."""
    for known in looked.session.layers.weights:
        if known is None or not (known.zero_rows or known.dead_columns):
            continue
        parts = []
        if known.zero_rows:
            parts.append(f"{known.zero_rows:,} output row{'s' if known.zero_rows > 1 else ''}")
        if known.dead_columns:
            many = "s" if known.dead_columns > 1 else ""
            parts.append(f"{known.dead_columns:,} input channel{many}")
        yield Finding(
            id="dead-rows",
            severity="note",
            layer=known.layer,
            sentence=f"{' and '.join(parts)} all zero: pruned, padded, or never trained",
            evidence={"zero_rows": known.zero_rows, "dead_columns": known.dead_columns},
        )


def outlier_channel(looked: Looked) -> Iterator[Finding]:
    """An input channel whose weights stretch the grid."""
    for known in looked.session.layers.weights:
        if known is None or not known.worst_column_sigma > looked.limits.outlier_column:
            continue
        yield Finding(
            id="outlier-channel",
            severity="warning",
            layer=known.layer,
            channels=(known.worst_column,),
            sentence=f"input channel {known.worst_column} reaches {known.worst_column_sigma:.1f}σ; "
            f"outliers waste {known.waste:.0%} of the grid",
            evidence={"sigma": known.worst_column_sigma, "waste": known.waste},
            fix=looked.fix(known.layer),
        )


# --- of the activations --------------------------------------------------------------------------


def input_channels(looked: Looked) -> Iterator[Finding]:
    """Input channels far above the others; one that recurs in many blocks is said once."""
    layers, limits = looked.session.layers, looked.limits
    # By width too: channels of the residual stream and of an MLP's inside have other numbers.
    found: dict[tuple[int, int], list[p.LayerActivations]] = {}
    for each in layers.activations:
        if each is None or each.shared_with != each.layer:
            continue
        given = each.input
        for channel, most in zip(given.outlier_channels, given.outlier_maxima, strict=True):
            if given.channel_median > 0 and most > limits.channel_ratio * given.channel_median:
                found.setdefault((given.channels, channel), []).append(each)
    blocks = len({block for block in layers.blocks if block >= 0})
    for (_, channel), where in found.items():
        acts = {layers.blocks[looked.session.index[each.layer]] for each in where} - {-1}
        if blocks > 2 and len(acts) >= limits.recurring * blocks:
            yield Finding(
                id="massive-channel",
                severity="warning",
                channels=(channel,),
                sentence=f"channel {channel} is an outlier in the inputs of {len(acts)} of "
                f"{blocks} blocks: rounding inputs to 8 bits needs +smooth or +outlier6",
                evidence={"blocks": len(acts)},
            )
            continue
        for each in where:
            times = each.input.outlier_maxima[each.input.outlier_channels.index(channel)]
            times /= each.input.channel_median
            yield Finding(
                id="input-channel",
                severity="note",
                layer=each.layer,
                channels=(channel,),
                sentence=f"input channel {channel} reaches {times:.0f}× the median channel",
                evidence={"ratio": times},
            )


def massive_token(looked: Looked) -> Iterator[Finding]:
    """A position whose norm dwarfs all others', where it is largest."""
    worst: p.LayerActivations | None = None
    times = looked.limits.massive
    for each in looked.session.layers.activations:
        if each is None or not each.input.median_norm > 0:
            continue
        ratio = each.input.largest_norm / each.input.median_norm
        if ratio > times:
            worst, times = each, ratio
    if worst is not None:
        place = f"position {worst.input.position}" if worst.input.position >= 0 else "one token"
        yield Finding(
            id="massive-token",
            severity="note",
            layer=worst.layer,
            sentence=f"the norm at {place} is {times:.0f}× the median, in {worst.input.massive:,} "
            f"of {worst.tokens:,} tokens at least 20×: one scale for all inputs loses the others",
            evidence={"ratio": times, "position": worst.input.position},
        )


def unseen_experts(looked: Looked) -> Iterator[Finding]:
    """Experts that the calibration text never reaches."""
    for each in looked.session.layers.activations:
        if each is None or not each.expert_tokens or each.layer != each.shared_with:
            continue
        unseen = [expert for expert, tokens in enumerate(each.expert_tokens) if not tokens]
        if unseen:
            few = ", ".join(map(str, unseen[:8])) + (", …" if len(unseen) > 8 else "")
            yield Finding(
                id="unseen-expert",
                severity="warning",
                layer=each.layer,
                sentence=f"{len(unseen)} of {len(each.expert_tokens)} experts got no token of the "
                f"calibration text ({few}): nothing is known of them; use more or other text",
                evidence={"unseen": len(unseen), "experts": len(each.expert_tokens)},
            )


# --- of the effects ------------------------------------------------------------------------------


def fragile_outside(looked: Looked) -> Iterator[Finding]:
    """Head or embedding that costs much of what the whole body costs."""
    if not looked.whole or not looked.damage > 0:
        return
    layers = looked.session.layers
    for row in layers.outside:
        name = layers.names[row]
        share = looked.kl.get(name, 0.0) / looked.damage
        if share > looked.limits.fragile_outside:
            role = layers.roles[row]
            yield Finding(
                id=f"fragile-{role}",
                severity="warning",
                layer=name,
                sentence=f"fragile {role}: {looked.format} here alone costs {share:.0%} of what it "
                "costs in the whole body",
                evidence={"kl": looked.kl[name], "share": share},
                fix=looked.fix(name),
            )


def fragile_layer(looked: Looked) -> Iterator[Finding]:
    """A layer that causes much of the damage, and far more than others of its kind."""
    if not looked.whole or not looked.damage > 0:
        return
    layers = looked.session.layers
    by_kind: dict[str, list[float]] = {}
    for name in looked.body:
        kind = layers.kinds[looked.session.index[name]]
        by_kind.setdefault(kind, []).append(looked.kl[name])
    for name in sorted(looked.body, key=lambda name: -looked.kl[name]):
        kl, kind = looked.kl[name], layers.kinds[looked.session.index[name]]
        usual = statistics.median(by_kind[kind])
        share = kl / looked.damage
        if share <= looked.limits.fragile_layer:
            return
        if len(by_kind[kind]) < 3 or kl <= looked.limits.above_typical * usual:
            continue
        times = f"{kl / usual:.0f}×" if usual > 0 else "far more than"
        yield Finding(
            id="fragile-layer",
            severity="warning",
            layer=name,
            sentence=f"causes {share:.0%} of the body's damage, {times} the median {kind}",
            evidence={"kl": kl, "share": share, "median": usual},
            fix=looked.fix(name),
        )


def end_blocks(looked: Looked) -> Iterator[Finding]:
    """A first or last block that is far more sensitive than the others."""
    if not looked.whole:
        return
    layers = looked.session.layers
    blocks: dict[int, float] = {}
    for name in looked.body:
        block = layers.blocks[looked.session.index[name]]
        if block >= 0:
            blocks[block] = blocks.get(block, 0.0) + looked.kl[name]
    if len(blocks) < 4:
        return
    usual = statistics.median(blocks.values())
    for block, place in ((min(blocks), "first"), (max(blocks), "last")):
        if usual > 0 and blocks[block] > looked.limits.above_typical * usual:
            yield Finding(
                id=f"{place}-block",
                severity="warning",
                sentence=f"the {place} block costs {blocks[block] / usual:.1f}× the median block: "
                "keep it in a better format",
                evidence={"kl": blocks[block], "median": usual, "block": block},
            )


def concentrated(looked: Looked) -> Iterator[Finding]:
    """A few layers that cause most of the damage."""
    count = len(looked.body)
    if not looked.whole or not looked.damage > 0 or count < 50:
        return
    worst = sorted(looked.body, key=lambda name: -looked.kl[name])[:5]
    share = math.fsum(looked.kl[name] for name in worst) / looked.damage
    if share > looked.limits.concentrated:
        yield Finding(
            id="concentrated",
            severity="note",
            sentence=f"{share:.0%} of the damage comes from 5 of {count} layers: a mix of formats "
            "wins most of it back",
            evidence={"share": share, "layers": count},
        )


CHECKS: tuple[Check, ...] = (
    not_finite,
    outlier_channel,
    input_channels,
    unseen_experts,
    fragile_outside,
    fragile_layer,
    end_blocks,
    concentrated,
    massive_token,
    dead_rows,
)
"""Every check, in the order in which equally severe findings are listed."""
