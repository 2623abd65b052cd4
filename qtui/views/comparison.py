"""Finished checkpoints beside their original, as lines: a list that opens under the cursor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from textwrap import wrap
from typing import Literal, TypeAlias

from engine import protocol as p
from engine.diagnosis.finding import Finding
from engine.diagnosis.of_artefacts import artefact_findings
from engine.diagnosis.thresholds import thresholds
from engine.report import wording as n
from engine.session import Compared, Session
from qtui.views.findings import STYLES, plain
from qtui.views.text import Glyphs, Words, bar, fit, printable, short_name

FIGURES = 47
"""Columns of the figures behind a checkpoint's name."""
BAR = 12
"""Cells of the bar of what a layer wins, where there is room."""
CLIPPED = 9
"""Columns of the share of a layer that is clipped, on wide terminals."""
Kind: TypeAlias = Literal["checkpoint", "finding", "layer", "said", "titles"]
ROUNDED = {"same": "same", "nearest": "nearest", "solved": "solved", "other": "other weights"}
"""How a layer was rounded, in a word or two."""


@dataclass(frozen=True)
class Item:
    """One line that the cursor may stand on, or a sentence."""

    kind: Kind
    artefact: str
    """Fingerprint of the finished checkpoint that it is about."""
    layer: str = ""
    finding: Finding | None = None
    said: str = ""


def items(session: Session, opened: str) -> list[Item]:
    """All lines: every finished checkpoint, the best first, and what is known of the opened one.

    Args:
        session: what is known.
        opened: fingerprint of the one whose findings and layers are listed.
    """
    found: list[Item] = []
    for compared in session.by_kl():
        fingerprint = compared.opened.fingerprint
        found.append(Item("checkpoint", fingerprint))
        if fingerprint == opened:
            found += _inside(session, fingerprint, compared)
    return found


def _inside(session: Session, fingerprint: str, compared: Compared) -> list[Item]:
    limits = thresholds(session)
    found = [
        Item("finding", fingerprint, each.layer, each)
        for each in artefact_findings(compared, limits)
        if each.id != "worth-keeping"  # the layers below say it
    ]
    changed = [fact for fact in compared.layers.values() if fact.rounding != "same"]
    counted: dict[str, int] = {}
    for fact in compared.layers.values():
        counted[fact.rounding] = counted.get(fact.rounding, 0) + 1
    if counted:
        said = ", ".join(f"{counted[kind]} {ROUNDED[kind]}" for kind in ROUNDED if kind in counted)
        folded = sum(fact.folded > 1 for fact in compared.layers.values())
        said += f"; scales folded into {folded}" if folded else ""
        turned = sum(bool(fact.rotated) for fact in compared.layers.values())
        said += f"; {turned} rotated" if turned else ""
        found.append(Item("said", fingerprint, said=f"layers: {said}"))
    order = {name: at for at, name in enumerate(session.layers.names)}
    changed.sort(key=lambda fact: (*_worth(compared, fact), order.get(fact.layer, 0)))
    if changed:
        found.append(Item("titles", fingerprint))
    return found + [Item("layer", fingerprint, fact.layer) for fact in changed]


def _worth(compared: Compared, fact: p.ArtefactLayer) -> tuple[float, float]:
    """What giving a layer back wins, else its error: the most first."""
    win = compared.restored.get(fact.layer)
    error = fact.error.relative
    return (
        math.inf if win is None else -win.kl,
        -error if math.isfinite(error) else -math.inf,
    )


def heading(width: int, glyphs: Glyphs) -> Words:
    """The titles of the columns."""
    kl = f"KL{glyphs.kilo}"
    titles = f"{'bits':>7}{'size':>9}{kl:>9}{'PPL':>9}{'top-1':>8}   "
    return [(f"  {fit('checkpoint', _room(width), glyphs)}{titles}", "$dim")]


def lines_of(
    session: Session, item: Item, width: int, glyphs: Glyphs, *, here: bool
) -> list[Words]:
    """One item as lines.

    Args:
        session: what is known.
        item: what to draw.
        width: cells there are.
        glyphs: what to draw with.
        here: whether the cursor is on it.
    """
    compared = session.compared[item.artefact]
    cursor = (f"{glyphs.cursor if here else ' '} ", "$primary")
    if item.kind == "checkpoint":
        return [[cursor, *_checkpoint(session, compared, width, glyphs, here)]]
    if item.kind == "said":
        return [[cursor, (f"  {fit(printable(item.said), width - 4, glyphs)}", "$dim")]]
    if item.kind == "titles":
        won = f"KL{glyphs.kilo} back" if compared.restored else ""
        name = fit("layer", _layer_room(width), glyphs)
        clipped = f"{'clipped':>9}" if _has_clipping(width) else ""
        titles = (
            f"  {name} {'stored as':<15}{'bits':>6}{'error':>8} {'rounded':<8}{clipped}{won:>11}"
        )
        return [[cursor, (titles, "$dim")]]
    if item.finding is not None:
        return _finding(item.finding, cursor, width, glyphs)
    return [[cursor, *_layer(session, compared, item.layer, width, glyphs, here)]]


def _room(width: int) -> int:
    return max(14, width - FIGURES - 2)


def _has_clipping(width: int) -> bool:
    """Whether there is room for the share of a layer that is clipped."""
    return width >= 56 + 40 + CLIPPED


def _layer_room(width: int) -> int:
    """Cells of a layer's name."""
    return max(14, min(40, width - 56))


def _checkpoint(
    session: Session, compared: Compared, width: int, glyphs: Glyphs, here: bool
) -> Words:
    opened, score = compared.opened, compared.score
    found = artefact_findings(compared, thresholds(session))
    doubt = sum(each.severity in ("alert", "warning") for each in found)
    room = _room(width)
    name = f"{printable(opened.name)}  {printable(opened.layout)}"
    style = "bold" if here else ""
    figures = f"{opened.bits_per_weight:>7.2f}{n.size(opened.bytes):>9}"
    if score is None:
        figures += f"{'not measured':>26}"
    else:
        kl = n.short(1000 * score.kl)
        figures += f"{kl:>9}{n.perplexity(score.ppl):>9}{score.top1:>8.1%}"
    mark = f" {glyphs.finding}" if doubt else "  "
    return [(fit(name, room, glyphs), style), (figures, style), (mark, "$finding")]


def _finding(finding: Finding, cursor: tuple[str, str], width: int, glyphs: Glyphs) -> list[Words]:
    tone = STYLES.get(finding.severity, "$dim")
    first, *rest = wrap(plain(finding.sentence, glyphs), max(20, width - 6)) or [""]
    lines: list[Words] = [[cursor, (f"  {glyphs.finding} ", tone), (first, tone)]]
    return lines + [[("      ", ""), (line, tone)] for line in rest]


def _layer(
    session: Session, compared: Compared, layer: str, width: int, glyphs: Glyphs, here: bool
) -> Words:
    fact, win = compared.layers[layer], compared.restored.get(layer)
    row = session.index.get(layer)
    block = -1 if row is None else session.layers.blocks[row]
    style = "bold" if here else ""
    name = printable(short_name(layer, block, 2))
    error = "-" if math.isnan(fact.error.relative) else f"{fact.error.relative:.1%}"
    held = fit(printable(fact.holds), 15, glyphs)
    room = _layer_room(width)
    words: Words = [
        (f"  {fit(name, room, glyphs)} ", style),
        (held, "$held"),
        (f"{fact.bits:>6.2f}{error:>8} ", style),
        (f"{fact.rounding:<8}", "$error" if fact.rounding == "other" else "$dim"),
    ]
    clipping = CLIPPED if _has_clipping(width) else 0
    if clipping:
        told = "" if math.isnan(fact.clipped) else n.percent(fact.clipped)
        words.append((f"{told:>{CLIPPED}}", style if fact.clipped > 0 else "$dim"))
    if win is not None and compared.score is not None:
        most = max(each.kl for each in compared.restored.values())
        share = win.kl / most if most > 0 else 0.0
        left = width - room - 56 + 12 - clipping
        words.append((f"{n.short(1000 * win.kl):>11} ", "$better" if win.kl > 0 else "$dim"))
        words.append((bar(share, max(0, min(BAR, left - 12)), glyphs), "$better"))
    return words
