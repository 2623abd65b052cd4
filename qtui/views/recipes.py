"""Recipes tried as lines: their sizes and scores, and what two of them have different."""

from __future__ import annotations

import math

from engine import protocol as p
from engine.report import wording as n
from engine.session import Session, expected, predict_tried
from engine.session.tried import Line, differing, layers_of, made_of
from qtui.views.text import Glyphs, Words, fit, printable, short_name

AS_STORED = "as stored"
FIGURES = 52
"""Columns of the figures behind a recipe's name."""


def heading(width: int, glyphs: Glyphs) -> Words:
    """The titles of the columns."""
    kl = f"KL{glyphs.kilo}"
    titles = f"{'changed':>8}{'bits':>7}{'all':>7}{'size':>9}{'PPL':>9}{kl:>9}   "
    return [(f"    {fit('recipe', _room(width), glyphs)}{titles}", "$dim")]


def line_of_list(
    session: Session, line: Line, width: int, glyphs: Glyphs, *, here: bool, marked: bool
) -> Words:
    """A recipe in the list.

    Args:
        session: whose recipe it is.
        line: the recipe.
        width: cells there are.
        glyphs: what to draw with.
        here: whether the cursor is on it.
        marked: whether others are compared with it.
    """
    cursor = glyphs.cursor if here else " "
    sign = glyphs.changed if line.current else " "
    mark = glyphs.marked if marked else " "
    name = fit(called(session, line), _room(width), glyphs)
    figures, tone = _figures(session, line)
    best = f" {glyphs.frontier}" if best_so_far(line) else ""
    style = "bold" if here else ""
    return [
        (f"{cursor}{sign}{mark} ", "$primary"),
        (name, f"{style} $held" if line.current else style),
        (figures, f"{style} {tone}".strip()),
        (best, "$better"),
    ]


def best_so_far(line: Line) -> bool:
    """Whether it is on the frontier of size and KL; the model as stored always is."""
    return line.frontier or line.number == 0


def _room(width: int) -> int:
    return max(12, width - FIGURES - 4)


def called(session: Session, line: Line) -> str:
    """The name of a recipe; without one, what its layers hold, the most frequent first."""
    if line.number == 0:
        return AS_STORED
    made = printable(made_of(session, line.number))
    return f"{printable(line.name)}: {made}" if line.name else made or AS_STORED


def _figures(session: Session, line: Line) -> tuple[str, str]:
    score, stored = line.score, session.layers.as_stored
    if line.number == 0 or not line.changed:
        size = stored.size({}, session.other_bytes, tied=session.tied)
        base = session.baseline
        ppl = n.perplexity(base.ppl) if base is not None else "-"
        kl = "0" if base is not None else "-"
        bits = size.bits_per_weight, size.bits_all, size.bytes
    elif score is None:
        return f"{line.changed:>8,}{'':7}{'':7}{'not measured':>27}", "$dim"
    else:
        ppl, kl = n.perplexity(score.ppl), n.short(1000 * score.kl)
        bits = score.bits_per_weight, score.bits_all, score.bytes
    body, every = (f"{each:.2f}" if each and math.isfinite(each) else "-" for each in bits[:2])
    return f"{line.changed:>8,}{body:>7}{every:>7}{n.size(bits[2]):>9}{ppl:>9}{kl:>9}", ""


def side_by_side(
    session: Session, base: Line, other: Line, width: int, glyphs: Glyphs
) -> list[Words]:
    """Two recipes, A and B, below each other: sizes, and scores as predicted and as measured.

    Args:
        session: whose recipes they are.
        base: A.
        other: B.
        width: cells there are.
        glyphs: what to draw with.
    """
    kl = f"KL{glyphs.kilo}"
    titles = f"{'bits':>7}{'all':>7}{'size':>9}{'PPL':>9}{kl:>9}{'predicted':>11}"
    lines: list[Words] = [[(f"    {fit('', _room(width), glyphs)}{titles}", "$dim")]]
    for letter, line in (("A", base), ("B", other)):
        name = fit(called(session, line), _room(width), glyphs)
        lines.append([(f"  {letter} ", "bold"), (name, ""), (_compared(session, line, glyphs), "")])
    return lines


def _compared(session: Session, line: Line, glyphs: Glyphs) -> str:
    """The figures of `side_by_side`."""
    size, score = session.size_of(layers_of(session, line.number)), line.score
    sizes = size.bits_per_weight, size.bits_all, size.bytes
    ppl, kl, guess = "-", "-", "-"
    if line.number == 0 or not line.changed:
        if session.baseline is not None:
            ppl, kl = n.perplexity(session.baseline.ppl), "0"
    else:
        if score is not None:
            sizes = score.bits_per_weight, score.bits_all, score.bytes
            ppl, kl = n.perplexity(score.ppl), n.short(1000 * score.kl)
        found = predict_tried(session, line.number)
        if found is not None:
            guess = glyphs.unknown if found.vague else f"{glyphs.about}{n.short(1000 * found.kl)}"
    body, every = (f"{each:.2f}" if each and math.isfinite(each) else "-" for each in sizes[:2])
    return f"{body:>7}{every:>7}{n.size(sizes[2]):>9}{ppl:>9}{kl:>9}{guess:>11}"


def apart(session: Session, base: Line, other: Line, glyphs: Glyphs) -> list[Words]:
    """What the second recipe has different from the first, layer by layer."""
    found = differing(session, base.number, other.number)
    if not found:
        return [[("no layer differs", "$dim")]]
    layers = "1 layer differs" if len(found) == 1 else f"{len(found)} layers differ"
    lines: list[Words] = [[(layers, "bold"), (f"{_change(base, other, glyphs)}", "")]]
    for name, (before, after) in found.items():
        row = session.index[name]
        shown = printable(short_name(name, session.layers.blocks[row], 2))
        effects = [_effect(session, row, held, glyphs) for held in (before, after)]
        lines.append(
            [
                (f"{shown:<28} ", ""),
                (f"{printable(before)} {glyphs.arrow} {printable(after)}".ljust(28), "$held"),
                (f" KL{glyphs.kilo} {effects[0]} {glyphs.arrow} {effects[1]}", "$dim"),
            ]
        )
    return lines


def _effect(session: Session, row: int, held: str, glyphs: Glyphs) -> str:
    """The KL of one layer alone in a format."""
    if held == session.kept(row):
        return "0"
    key = p.EffectKey("degrade", held)
    if (known := session.sensitivity(row, key)) is not None:
        return n.short(1000 * known.kl)
    guess = expected(session, row, key)
    return glyphs.unknown if guess is None else f"{glyphs.about}{n.short(1000 * guess.kl)}"


def _change(base: Line, other: Line, glyphs: Glyphs) -> str:
    """The change of size and KL between two measured recipes."""
    if base.score is None or other.score is None:
        return ""
    size = other.score.bytes - base.score.bytes
    kl = 1000 * (other.score.kl - base.score.kl)
    signs = ("+" if size > 0 else ""), ("+" if kl > 0 else "")
    return f": {signs[0]}{n.size(size)}, KL{glyphs.kilo} {signs[1]}{n.short(kl)}"
