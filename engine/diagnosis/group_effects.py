"""What a layer costs with other group sizes: known, or filled in by the error of its weights."""

from __future__ import annotations

import math

import msgspec

from engine import protocol as p
from engine.session import KnownEffects, Session


class GroupEffect(msgspec.Struct, frozen=True):
    """A group size with its KL."""

    group: p.GroupSize
    kl: float
    """Nats per token, of the layer alone; nan where nothing tells it."""
    measured: bool = False
    filled: bool = False
    """Whether it is filled in from another format of the layer."""


def group_effects(session: Session, ranges: p.LayerRanges) -> list[GroupEffect]:
    """KL of a layer in every group size: KL grows with the square of the weight error.

    Args:
        session: with effects.
        ranges: of the layer.
    """
    effects = KnownEffects(session)
    known = {
        group.format: effect
        for group in ranges.groups
        if (effect := effects.known(ranges.layer, group.format)) is not None
    }
    relative = {group.format: group.relative for group in ranges.groups}
    found = []
    for group in ranges.groups:
        if (effect := known.get(group.format)) is not None:
            found.append(GroupEffect(group, effect.kl, measured=effect.measured))
            continue
        near = [held for held in known if relative[held] > 0 and group.relative > 0]
        if near:
            ratios = {held: group.relative / relative[held] for held in near}
            held = min(near, key=lambda held: abs(math.log(ratios[held])))
            kl = max(0.0, known[held].kl) * ratios[held] ** 2
            found.append(GroupEffect(group, kl, filled=True))
            continue
        other = effects.of(ranges.layer, group.format)
        kl = math.nan if other is None else other.kl
        found.append(GroupEffect(group, kl, filled=other is not None))
    return found
