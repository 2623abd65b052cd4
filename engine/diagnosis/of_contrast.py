"""What differs inside the model where prompts fail, where chance does not explain it, in words."""

from __future__ import annotations

from collections.abc import Iterator

from engine import protocol as p

CHANCE = 0.01
"""Of so large a difference anywhere, were it chance which prompts fail."""
SHARE = 0.25
"""Part of a layer's output error on failing prompts that comes in by channels which are named."""
ONLY = 0.1
"""Of its size on failing prompts, up to which a channel on others fires only there."""
TWICE = 2.0
"""Times as large on failing prompts as on others that a channel or a head must be to be named."""
LEAST_KL = 0.1
"""Nats a query by which a head that is named diverges."""
NAMED = 4
"""Channels that are named of a layer."""


def channels_by_layer(contrast: p.SymptomContrast) -> dict[str, list[p.ContrastedChannel]]:
    """Channels that are larger there by more than chance, by layer; the most different first."""
    found: dict[str, list[p.ContrastedChannel]] = {}
    for each in contrast.channels:
        if each.chance < CHANCE and each.failing >= TWICE * each.healthy:
            found.setdefault(each.layer, []).append(each)
    return found


def firing(contrast: p.SymptomContrast) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Layers whose error on failing prompts comes in by channels that differ there.

    Yields:
        The layer, a sentence, its figures.
    """
    for layer, found in channels_by_layer(contrast).items():
        share = sum(each.share for each in found)
        if not share >= SHARE:
            continue
        count = len(found)
        there = sum(each.failing for each in found) / count
        others = sum(each.healthy for each in found) / count
        chance = max(each.chance for each in found)
        names = ", ".join(str(each.channel) for each in found[:NAMED])
        names += f" and {count - NAMED} more" if count > NAMED else ""
        what = f"input {'channels' if count > 1 else 'channel'} {names} of {layer}"
        one = "" if count > 1 else "s"
        fires = (
            f"fire{one} only"
            if others <= ONLY * there
            else f"{'are' if count > 1 else 'is'} larger"
        )
        sentence = (
            f"{what} {fires} on prompts that fail (mean {there:.3g}, {others:.2g} on others): "
            f"{share:.0%} of the layer's error there comes in by {'them' if count > 1 else 'it'}"
        )
        evidence = {
            "channels": float(count), "failing": there, "healthy": others, "share": share,
            "share_healthy": sum(each.share_healthy for each in found), "chance": chance,
        }  # fmt: skip
        yield layer, sentence, evidence


def diverging(contrast: p.SymptomContrast) -> Iterator[tuple[str, dict[str, float]]]:
    """Heads that attend elsewhere on failing prompts, more than on others.

    Yields:
        A sentence, its figures.
    """
    found = [
        each
        for each in contrast.heads
        if each.chance < CHANCE and each.failing >= max(LEAST_KL, TWICE * each.healthy)
    ]
    if not found:
        return
    best, more = found[0], len(found) - 1
    where = f"head {best.head} of block {best.block}"
    yield (
        f"{where}{f' and {more} more' if more else ''} attend{'' if more else 's'} elsewhere on "
        f"prompts that fail (KL {best.failing:.2g} nats a query, {best.healthy:.2g} on others)",
        {
            "block": float(best.block), "head": float(best.head), "heads": float(len(found)),
            "failing": best.failing, "healthy": best.healthy, "chance": best.chance,
        },
    )  # fmt: skip
