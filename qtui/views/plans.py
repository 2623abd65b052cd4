"""A plan as lines: its recipe, simpler rules and the frontier; what it would change."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.cells import cell_len

from engine import protocol as p
from engine.report import wording as n
from engine.session import Session
from qtui.views.text import Glyphs, Words, fit, printable, short_name

KIND = "plan"
LEAST = 5
"""Lines of the plot that a legend leaves it at least."""
FIGURES = 46
"""Columns of the figures behind a line's name."""
RANGE = 1e5
"""What the plot's largest KL is divided by, for the smallest that is drawn."""
NAMED = 3
"""Layers of a change that are named; more are counted by kind."""


class Row(NamedTuple):
    """A line of the list: the plan, a rule beside it, or a point of the frontier."""

    name: str
    """Empty for a point of the frontier."""
    point: p.Point
    plan: bool = False


def rows_of(planned: p.Planned) -> list[Row]:
    """All lines, the largest first; a point of the frontier that the plan took is the plan's."""
    plan = planned.point
    rows = [Row("", point) for point in planned.frontier if not _same(point, plan)]
    rows += [Row(printable(name), point) for name, point in planned.baselines.items()]
    rows.append(Row(f"plan for {planned.budget}", plan, plan=True))
    return sorted(rows, key=lambda row: (-row.point.bytes, not row.plan))


def _same(one: p.Point, other: p.Point) -> bool:
    """Whether two points of a plan are one recipe: as large, and predicted the same."""
    return one.bytes == other.bytes and math.isclose(one.kl, other.kl, rel_tol=1e-6, abs_tol=1e-12)


def heading(width: int, glyphs: Glyphs) -> Words:
    """The titles of the columns."""
    kl = f"KL{glyphs.kilo}"
    titles = f"{'bits':>8}{'size':>10}{glyphs.about + kl:>11}{kl:>16} "
    return [(f"  {fit('recipe', _room(width), glyphs)}{titles}", "$dim")]


def line_of(row: Row, width: int, glyphs: Glyphs, factor: float, *, here: bool) -> Words:
    """A line of the list.

    Args:
        row: what it shows.
        width: cells there are.
        glyphs: what to draw with.
        factor: half an interval, in standard errors.
        here: whether the cursor is on it.
    """
    point = row.point
    measured = "-"
    if point.score is not None:
        measured = n.short(1000 * point.score.kl) + _half(point.score.kl_se, factor, glyphs)
    bits = f"{point.bits_per_weight:.2f}" if math.isfinite(point.bits_per_weight) else "-"
    figures = f"{bits:>8}{n.size(point.bytes):>10}{n.short(1000 * point.kl):>11}{measured:>16} "
    tone = "bold" if here or row.plan else "" if row.name else "$dim"
    name = row.name or "of the frontier"
    return [
        (f"{glyphs.cursor if here else ' '} ", "$primary"),
        (fit(name, _room(width), glyphs), f"{tone} $held".strip() if row.plan else tone),
        (figures, tone),
    ]


def _room(width: int) -> int:
    return max(8, width - FIGURES - 2)


def changes(session: Session, recipe: Mapping[str, str], width: int, glyphs: Glyphs) -> list[Words]:
    """What a recipe would change in the current one, by formats before and after.

    Layers that do not fit into ``width`` go on in the next line.
    """
    layers = session.layers
    by_formats: dict[tuple[str, str], list[int]] = {}
    for row, name in enumerate(layers.names):
        kept = session.kept(row)
        pair = session.changed.get(name, kept), recipe.get(name, kept)
        if pair[0] != pair[1]:
            by_formats.setdefault(pair, []).append(row)
    if not by_formats:
        return [[("the current recipe is this one", "$dim")]]
    total = sum(len(rows) for rows in by_formats.values())
    lines: list[Words] = [[(f"changes {total} layer{'s' if total > 1 else ''}", "bold")]]
    for (before, after), rows in sorted(by_formats.items(), key=lambda each: -len(each[1])):
        count = f"{len(rows):>5}  "
        pair_shown = f"{printable(before)} {glyphs.arrow} {printable(after)}".ljust(26)
        left = cell_len(count) + cell_len(pair_shown) + 1
        which = _wrapped(_which(session, rows), max(16, width - left))
        lines.append([(count, ""), (pair_shown, "$held"), (f" {which[0]}", "$dim")])
        lines += [[(f"{' ' * left}{more}", "$dim")] for more in which[1:]]
    return lines


def _wrapped(words: Sequence[str], width: int) -> list[str]:
    """Words with commas between them, in lines of at most ``width`` cells where one fits."""
    lines = [""]
    for at, word in enumerate(words):
        word += "," if at + 1 < len(words) else ""
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and cell_len(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _which(session: Session, rows: Sequence[int]) -> list[str]:
    """Some layers by name, or many by kind."""
    layers = session.layers
    if len(rows) <= NAMED:
        return [printable(short_name(layers.names[r], layers.blocks[r], 2)) for r in rows]
    kinds = Counter(layers.kinds[row] for row in rows)
    return [f"{many} {printable(kind)}" for kind, many in kinds.most_common()]


def _half(error: float, factor: float, glyphs: Glyphs) -> str:
    """Half an interval, times 1000; nothing while it is not known."""
    half = 1000 * factor * error
    return f" {glyphs.plus_minus}{n.short(half)}" if math.isfinite(half) else ""


def summary(planned: p.Planned, width: int, glyphs: Glyphs, factor: float) -> Words:
    """The plan in a line: what it costs, and what it saves where ``width`` has room for it.

    Args:
        planned: the plan.
        width: cells there are.
        glyphs: what to draw with.
        factor: half an interval, in standard errors.
    """
    point = planned.point
    kl = f"KL{glyphs.kilo} "
    if point.score is not None:
        half = _half(point.score.kl_se, factor, glyphs)
        said = f"{kl}{n.short(1000 * point.score.kl)}{half} measured"
    else:
        half = _half(planned.kl_se, factor, glyphs)
        said = f"{kl}{glyphs.about}{n.short(1000 * point.kl)}{half} predicted"
    words: Words = [(said, "bold")]
    words.append((f"  {point.bits_per_weight:.3g} bits  {n.size(point.bytes)}", ""))
    if math.isfinite(planned.recovered):
        for less in ("less than the best uniform recipe", "less than uniform"):
            saved = f"  {planned.recovered:.0%} {less}"
            if sum(cell_len(text) for text, _ in words) + cell_len(saved) <= width:
                words.append((saved, "$better"))
                break
    return words


def finished_points(session: Session) -> list[tuple[int, float]]:
    """Bytes and KL of the finished checkpoints that were compared."""
    scored = (each for each in session.compared.values() if each.score is not None)
    return [
        (each.opened.bytes, each.score.kl) for each in scored if each.score and each.score.kl > 0
    ]


def frontier_plot(
    rows: Sequence[Row],
    here: Row | None,
    width: int,
    height: int,
    glyphs: Glyphs,
    finished: Sequence[tuple[int, float]] = (),
    factor: float = math.nan,
) -> list[Words]:
    """KL over size, both axes' ends named: ``height`` lines of ``width`` cells; by logarithm.

    Points of the frontier are dots; rules, the plan and finished checkpoints have a character of
    their own. What has a name and no KL at all, such as a plan that leaves everything as stored, is
    on a line of its own at the bottom.

    Args:
        rows: points of the frontier, rules, the plan.
        here: under the cursor.
        width: cells there are.
        height: lines there are.
        glyphs: what to draw with.
        finished: bytes and KL of finished checkpoints that were compared.
        factor: half an interval, in standard errors: bars of what was measured, where they are
            longer than a line.
    """
    shown = [row for row in rows if _kl(row) > 0 and math.isfinite(_kl(row))]
    most = max(map(_kl, shown), default=0.0)
    shown = [row for row in shown if _kl(row) >= most / RANGE or row.name]
    zeros = [row for row in rows if _kl(row) == 0 and (row.name or row is here)]
    if len(shown) < 2 or width < 24 or height < 5:
        return []
    others = [(size, kl) for size, kl in finished if kl >= most / RANGE]
    sizes = [row.point.bytes for row in [*shown, *zeros]] + [size for size, _ in others]
    logs = [math.log10(_kl(row)) for row in shown] + [math.log10(kl) for _, kl in others]
    low, high = min(sizes), max(sizes)
    bottom, top = min(logs), max(logs)
    left = 7
    columns = width - left
    ends = n.size(low), n.size(high)
    foot = _foot(rows, ends, columns, height - LEAST, glyphs, compared=bool(others))
    foot = foot[: max(1, height - LEAST)]
    lines = height - len(foot) - bool(zeros)

    def at(size: int, kl: float) -> tuple[int, int]:
        x = (size - low) / ((high - low) or 1)
        if kl == 0:
            return round(x * (columns - 1)), lines
        y = (math.log10(kl) - bottom) / ((top - bottom) or 1.0)
        return round(x * (columns - 1)), round((1 - y) * (lines - 1))

    def place(row: Row) -> tuple[int, int]:
        return at(row.point.bytes, _kl(row))

    cells: dict[tuple[int, int], tuple[str, str]] = {}
    dot = "." if glyphs.ascii else "·"
    bar = "|" if glyphs.ascii else "│"
    for row in shown:
        low_kl, high_kl = _interval(row, factor)
        x, bottom_line = at(row.point.bytes, max(low_kl, 10**bottom))
        top_line = at(row.point.bytes, min(high_kl, 10**top))[1]
        cells.update({(x, y): (bar, "$dim") for y in range(top_line, bottom_line + 1)})
    cells.update({at(size, kl): ("C", "$better") for size, kl in others})
    for row in sorted([*shown, *zeros], key=lambda row: (bool(row.name), row.plan)):
        if row.plan:
            cells[place(row)] = (glyphs.frontier, "bold $held")
        elif row.name:
            cells[place(row)] = (row.name[0].upper(), "$finding")
        else:
            if cells.get(place(row), (bar, ""))[0] == bar:
                cells[place(row)] = (dot, "$primary")
    if here is not None and here in [*shown, *zeros]:
        character = cells[place(here)][0]
        cells[place(here)] = (character, "reverse bold")
    drawn: list[Words] = []
    for y in range(lines + bool(zeros)):
        label = "0" if y == lines else ""
        if y in (0, lines - 1):
            label = n.short(1000 * 10 ** (top if y == 0 else bottom))
        words: Words = [(f"{label:>{left - 1}}{bar}", "$dim")]
        words += [cells.get((x, y), (" ", "")) for x in range(columns)]
        drawn.append(words)
    return drawn + [[(f"{' ' * left}{line}", "$dim")] for line in foot]


def _foot(
    rows: Sequence[Row],
    ends: tuple[str, str],
    columns: int,
    height: int,
    glyphs: Glyphs,
    *,
    compared: bool,
) -> list[str]:
    """The axis of sizes with the legend in it, or below it where it is too long for one line and
    there is room."""
    names = [row.name for row in rows if row.name and not row.plan]
    marks = [f"{glyphs.frontier} plan", *(["C compared"] if compared else [])]
    marks += [f"{name[0].upper()} {name}" for name in names]
    title = f"KL{glyphs.kilo} over size"
    gap = max(0, columns - cell_len(ends[0]) - cell_len(ends[1]) - 2)
    legend = f"{title}   {'  '.join(marks)}"
    if cell_len(legend) <= gap:
        return [f"{ends[0]} {legend.center(gap)} {ends[1]}"]
    if height < 3:  # the titles of the list's columns say what it is
        return [f"{ends[0]} {fit('  '.join(marks), gap, glyphs)} {ends[1]}"]
    lines = [f"{ends[0]} {title.center(gap)} {ends[1]}", marks[0]]
    for mark in marks[1:]:
        if cell_len(lines[-1]) + 2 + cell_len(mark) <= columns:
            lines[-1] += f"  {mark}"
        else:
            lines.append(mark)
    return lines


def _interval(row: Row, factor: float) -> tuple[float, float]:
    """Between which KL it was measured; its own KL twice where that is not known."""
    score, kl = row.point.score, _kl(row)
    half = factor * score.kl_se if score is not None else math.nan
    return (kl - half, kl + half) if math.isfinite(half) else (kl, kl)


def _kl(row: Row) -> float:
    """Measured where it is, else predicted."""
    score = row.point.score
    return score.kl if score is not None and score.kl > 0 else row.point.kl
