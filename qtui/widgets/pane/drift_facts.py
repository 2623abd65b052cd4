"""The pane's tab of drift: how the recipe's error grows from block to block."""

from __future__ import annotations

import math
from heapq import nlargest

from engine.protocol import BlockDrift, Drift
from engine.report import wording as n
from qtui.views.text import Glyphs, bar, listed, printable, wrapped
from qtui.widgets.line import Words
from qtui.widgets.pane.tab import TabContext, is_running, measures_errors

BLOCK, FIGURE = 6, 11
COLUMNS = ("drift", "injected", "propagated", "control")
LEAST_BAR, MOST_BAR = 6, 40
HEADS = 8
"""Heads that diverge most that are listed."""
UNMOVED = "nothing drifts: the recipe changes the output of no block"
ABOUT = (
    "drift: relative change of a block's output. injected: with this block alone quantised. "
    "propagated: what came in, passed on. control: noise of the same norm, passed on."
)


def drift_lines(context: TabContext) -> list[Words]:
    """A line of figures for every block, the layer's own marked; then the heads that diverge."""
    session, width, glyphs = context.session, context.width, context.glyphs
    if not session.changed:
        return [[("every layer is as stored: nothing drifts", "$dim")]]
    found = session.drift()
    if found is None:
        said = "not measured yet for this recipe"
        if is_running(session, measures_errors):
            said = "running it beside the unchanged model" + glyphs.ellipsis
        elif session.model is not None:
            said += f": {context.key('errors')} runs it beside the unchanged model"
        return [[(piece, "$dim")] for piece in wrapped(said, max(20, width))]
    here = session.layers.blocks[context.row]
    if found.embedding == 0 and all(each.drift == 0 for each in found.blocks):
        # The recipe changes the head alone, or layers that change nothing.
        return [[(piece, "$dim")] for piece in wrapped(UNMOVED, max(20, width))]
    lines = [_headings(width)]
    most = max((each.drift for each in found.blocks if math.isfinite(each.drift)), default=0.0)
    if found.embedding > 0:
        lines.append([(f"{'in':>{BLOCK}}", "$dim"), (_figure(found.embedding), "")])
    lines += [_block(each, here, most, width, glyphs) for each in found.blocks]
    lines += [[], *_heads(found, here, width, glyphs)]
    for said in (found.not_split, f"{found.tokens:,} tokens. {ABOUT}"):
        lines += [[(piece, "$dim")] for piece in wrapped(printable(said), max(20, width))]
    return lines


def _shown(width: int) -> int:
    """How many columns there is room for."""
    return max(1, min(len(COLUMNS), (width - BLOCK) // FIGURE))


def _headings(width: int) -> Words:
    titles = "".join(f"{title:>{FIGURE}}" for title in COLUMNS[: _shown(width)])
    return [(f"{'block':>{BLOCK}}{titles}", "$dim")]


def _figure(value: float) -> str:
    return f"{'' if math.isnan(value) else n.percent(value):>{FIGURE}}"


def _block(each: BlockDrift, here: int, most: float, width: int, glyphs: Glyphs) -> Words:
    """One block: its figures, and its drift as a bar, marked where the block itself adds most."""
    mark = glyphs.cursor if each.block == here else " "
    words: Words = [
        (mark, "$primary"),
        (f"{each.block:>{BLOCK - 1}}", "bold" if mark != " " else ""),
    ]
    for title in COLUMNS[: _shown(width)]:
        words.append((_figure(getattr(each, title)), "bold" if title == "drift" else ""))
    room = min(MOST_BAR, width - BLOCK - FIGURE * _shown(width) - 1)
    if room < LEAST_BAR or not most > 0:
        return words
    added = each.injected if math.isfinite(each.injected) else 0.0
    tone = "$finding" if added > each.propagated else "$primary"
    return [*words, (" ", ""), (bar(each.drift / most, room, glyphs), tone)]


def _heads(found: Drift, here: int, width: int, glyphs: Glyphs) -> list[Words]:
    """The heads whose attention diverges most, of the whole model and of the layer's block."""
    if found.no_attention:
        why = f"attention was not compared: {printable(found.no_attention)}"
        return [*([(piece, "$dim")] for piece in wrapped(why, max(20, width))), []]
    every = [
        (kl, each.block, head) for each in found.blocks for head, kl in enumerate(each.attention)
    ]
    worst = nlargest(HEADS, every)
    said = [f"{block}.{head} {n.short(1000 * kl)}" for kl, block, head in worst]
    windows = f"{found.attention_windows} window" + "s" * (found.attention_windows != 1)
    title = f"attention that diverges most: block.head, KL{glyphs.kilo} in nats"
    title += f" (first {found.attention_tokens} tokens of {windows})"
    lines: list[Words] = [[(piece, "$dim")] for piece in wrapped(title, max(20, width))]
    lines += [[("  " + piece, "")] for piece in listed(said, max(20, width - 2))]
    own = [each.attention for each in found.blocks if each.block == here and each.attention]
    if own:
        heads = ", ".join(n.short(1000 * kl) for kl in own[0])
        own_heads = wrapped(f"heads of block {here}: {heads}", max(20, width))
        lines += [[(piece, "")] for piece in own_heads]
    return [*lines, []]
