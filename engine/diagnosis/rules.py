"""Rules of thumb, checked against this checkpoint: each holds here or not, with its figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from engine import protocol as p
from engine.diagnosis.finding import Finding, Looked
from engine.formats.grammar import parse_format
from engine.formats.storage import stored_bits
from engine.session.artefact import OUTSIDE

LEAST_BLOCKS = 4
"""Blocks below which nothing is said of the first and the last."""
LEAST_LAYERS = 3
"""Layers of a kind below which nothing is said of it."""
FIRST_KINDS = ("v_proj", "down_proj")
"""To these llama.cpp's mixes give more bits than to the others (Q4_K_M: attn_v and ffn_down)."""
HALF = 0.5


def first_and_last(looked: Looked) -> Iterator[Finding]:
    """Whether the first and the last block cost more, weight for weight."""
    blocks = looked.by_block
    if len(blocks) < LEAST_BLOCKS or not looked.damage > 0:
        return
    layers = looked.session.layers
    weights: dict[int, int] = {}
    for name in looked.body:
        row = looked.session.index[name]
        weights[layers.blocks[row]] = weights.get(layers.blocks[row], 0) + math.prod(
            layers.shapes[row]
        )
    ends = min(blocks), max(blocks)
    inner = [block for block in blocks if block not in ends]
    each = [blocks[end] / weights[end] for end in ends]
    usual = math.fsum(blocks[at] for at in inner) / sum(weights[at] for at in inner)
    if not usual > 0:
        return
    first, last = (cost / usual for cost in each)
    holds = (first >= looked.limits.end_blocks, last >= looked.limits.end_blocks)
    said = {
        (True, True): "holds here",
        (True, False): "holds for the first block, not for the last",
        (False, True): "holds for the last block, not for the first",
        (False, False): "does not hold here",
    }[holds]
    yield Finding(
        id="rule-first-last",
        severity="info",
        sentence=f"the rule to keep the first and last block {said}: weight for weight they cost "
        f"{first:.1f}× and {last:.1f}× what the others do",
        evidence={"first": first, "last": last},
    )


def kinds(looked: Looked) -> Iterator[Finding]:
    """Kinds by what they cost, weight for weight, beside the order that mixes assume."""
    if not looked.whole or not looked.damage > 0:
        return
    layers = looked.session.layers
    cost: dict[str, float] = {}
    for kind, rows in looked.kinds.items():
        known = [row for row in rows if layers.names[row] in looked.kl]
        if len(known) < LEAST_LAYERS:
            continue
        together = math.fsum(looked.kl[layers.names[row]] for row in known)
        cost[kind] = together / sum(math.prod(layers.shapes[row]) for row in known)
    least = min((each for each in cost.values() if each > 0), default=0.0)
    if len(cost) < LEAST_LAYERS or not least > 0:
        return
    order = sorted(cost, key=lambda kind: -cost[kind])
    said = ", ".join(f"{kind} {cost[kind] / least:.1f}×" for kind in order[:6])
    rule = ""
    if set(FIRST_KINDS) <= set(cost):
        middle = statistics.median(cost.values())
        not_so = [kind for kind in FIRST_KINDS if cost[kind] <= middle]
        rule = "; the rule that v_proj and down_proj need more than most kinds " + (
            f"does not hold for {' and '.join(not_so)}" if not_so else "holds here"
        )
    yield Finding(
        id="rule-kinds",
        severity="info",
        sentence=f"kinds by damage, weight for weight, as multiples of the least: {said}{rule}",
        evidence={kind: cost[kind] / least for kind in order},
    )


def smaller_groups(looked: Looked) -> Iterator[Finding]:
    """Whether groups of 64 at 3 bits are worth their scales: beside more bits for as much."""
    layers = looked.session.layers
    session = looked.session
    three, four = (
        looked if looked.format == name else Looked(session, name, looked.limits)
        for name in ("int3-g128", "int4-g128")
    )
    if not (three.whole and four.whole and 0 < four.damage < three.damage):
        return
    noise = {known.layer: known.noise_g64 for _, known in looked.weights}
    if any(math.isnan(noise.get(name, math.nan)) for name in three.body):
        return
    left = math.fsum(three.kl[name] * noise[name] for name in three.body) / three.damage
    fine, coarse = parse_format("int3-g64"), parse_format("int3-g128")
    shapes = [layers.shapes[session.index[name]] for name in three.body]
    weights = sum(math.prod(shape) for shape in shapes)
    more = sum(stored_bits(fine, s) - stored_bits(coarse, s) for s in shapes) / weights
    if not more > 0:
        return
    spent = (three.damage / four.damage) ** -more  # along int3 to int4, a bit apart
    better = left < spent
    yield Finding(
        id="rule-group-64",
        severity="info",
        sentence=f"groups of 64 at 3 bits {'pay' if better else 'do not pay'} here: for {more:.2f} "
        f"bits they leave ≈{left:.0%} of the damage, as many bits spent on a mix with 4 bits "
        f"≈{spent:.0%}",
        evidence={"left": left, "mix": spent, "bits": more},
    )


def perplexity(looked: Looked) -> Iterator[Finding]:
    """Whether bounds on a layer's increase of perplexity find where the damage is."""
    session, limits = looked.session, looked.limits
    if session.baseline is None or not looked.whole or not looked.damage > 0:
        return
    increase: dict[str, float] = {}
    column = looked.effects.column(looked.format)
    for name in looked.body:
        if (effect := column[session.index[name]]) is not None:
            increase[name] = session.baseline.ppl * math.expm1(min(effect[1], 700.0))
    sensitive = [name for name, by in increase.items() if by >= limits.ppl_sensitive]
    critical = sum(by >= limits.ppl_critical for by in increase.values())
    share = math.fsum(looked.kl[name] for name in sensitive) / looked.damage
    verdict = "finds most of the damage" if share >= HALF else "misses most of the damage"
    one = len(sensitive) == 1
    layers = "1 layer" if one else f"{len(sensitive)} layers"
    said = f"{layers}, {critical} of them critical, cause{'s' if one else ''} {share:.0%}"
    if not sensitive:
        said = f"the worst costs +{max(increase.values(), default=0.0):.2f}"
    yield Finding(
        id="rule-perplexity",
        severity="info",
        sentence="the rule that a layer is sensitive from a perplexity of "
        f"+{limits.ppl_sensitive:g} on, and critical from +{limits.ppl_critical:g}, "
        f"{verdict} here: {said}",
        evidence={"sensitive": len(sensitive), "critical": critical, "share": share},
    )


def outlier_channels(looked: Looked) -> Iterator[Finding]:
    """Whether layers with many outlier channels among their inputs cost more."""
    layers = looked.session.layers
    if not looked.whole or not looked.damage > 0:
        return
    limit = looked.limits.outlier_channels
    many: list[int] = []
    seen = 0
    for row, (known, role) in enumerate(zip(layers.activations, layers.roles, strict=True)):
        if known is None or role in OUTSIDE or layers.names[row] not in looked.kl:
            continue
        seen += 1
        if _share(known) > limit:
            many.append(row)
    if not many or len(many) == seen:
        return
    share = math.fsum(looked.kl[layers.names[row]] for row in many) / looked.damage
    weights = sum(math.prod(layers.shapes[row]) for row in many)
    whole = sum(math.prod(layers.shapes[looked.session.index[name]]) for name in looked.body)
    times = share / (weights / whole)
    holds = times >= looked.limits.end_blocks
    yield Finding(
        id="rule-outlier-channels",
        severity="info",
        sentence=f"that more than {limit:.0%} outlier channels make a layer "
        f"fragile {'holds' if holds else 'does not hold'} here: {len(many)} of {seen} layers have "
        f"them, and cost {times:.1f}× an even share",
        evidence={"layers": len(many), "times": times},
    )


def _share(known: p.LayerActivations) -> float:
    return known.input.by_median / known.input.channels if known.input.channels else 0.0
