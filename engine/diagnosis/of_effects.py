"""Findings of effects: which layers and blocks cause the damage."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from engine.diagnosis.finding import Finding, Looked


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
    blocks = looked.by_block
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
