"""Charts of a report, as coordinates that the page's template draws."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from msgspec import UnsetType

from engine.report import schema as s
from engine.report import wording as n
from engine.report.page.scales import Axis, spanning

WIDTH = 920
"""Of a chart, in pixels; the page scales it."""
SHADES = 9
"""Of the map, from the least to the most."""
RANGE = 300.0
"""A value of this share of the largest, or less, has the lightest shade."""
LABEL_WIDTH, LABEL_HEIGHT = 90.0, 14.0
"""Room for the label of a mark, in pixels."""
CELLS = 4000
"""A map with more cells has no numbers in them."""


@dataclass(frozen=True)
class Cell:
    """One layer of the map."""

    x: float
    y: float
    shade: int
    """0 to `SHADES`; 0 means that nothing is known."""
    text: str
    title: str


@dataclass(frozen=True)
class HeatMap:
    """Kinds of layers down, blocks across."""

    width: float
    height: float
    cell: float
    """Width of a cell."""
    row: float
    left: float
    top: float
    cells: list[Cell]
    kinds: list[tuple[str, float]]
    blocks: list[tuple[str, float]]
    largest: str


def heat_map(document: s.ReportDocument) -> HeatMap | None:
    """KL of every layer in the format of the report; None if no effect is known."""
    values: dict[tuple[str, int], tuple[float, bool, str]] = {}
    kinds: dict[str, None] = {}
    outside: dict[str, None] = {}
    for layer in document.layers:
        block = -1 if layer.block is None else layer.block
        # Head and embedding are in no block: a row each, in the first column.
        (outside if block < 0 else kinds).setdefault(layer.kind)
        effect = layer.effects.get(document.format)
        kl = effect.kl if effect is not None else None
        known = values.get((layer.kind, block))
        if kl is not None and (known is None or kl > known[0]):
            values[layer.kind, block] = kl, bool(effect and effect.measured), layer.name
    if not values:
        return None
    blocks = sorted({layer.block for layer in document.layers if layer.block is not None})
    columns = [-1, *blocks] if outside else blocks
    largest = max(value for value, _, _ in values.values())
    rows = [*outside, *kinds]
    left, top, row = 12 + 7.2 * max(len(kind) for kind in rows), 20.0, 22.0
    width = max(WIDTH, left + 14.0 * len(columns))
    cell = min(46.0, (width - left - 4) / len(columns))
    numbers = len(columns) * len(rows) <= CELLS and cell >= 26
    cells = [
        Cell(
            round(left + columns.index(block) * cell, 1),
            top + rows.index(kind) * row,
            shade(value, largest),
            n.short(1000 * value) if numbers else "",
            f"{name}: KL·10³ {'' if measured else '≈'}{n.short(1000 * value)}",
        )
        for (kind, block), (value, measured, name) in values.items()
    ]
    every = max(1, math.ceil(24 / cell))
    labels = [
        ("·" if block < 0 else str(block), round(left + (at + 0.5) * cell, 1))
        for at, block in enumerate(columns)
        if block < 0 or block % every == 0
    ]
    return HeatMap(
        width, top + row * len(rows) + 4, cell, row, left, top, cells,
        [(kind, top + (at + 0.68) * row) for at, kind in enumerate(rows)],
        labels, n.short(1000 * largest),
    )  # fmt: skip


def shade(value: float, largest: float) -> int:
    """Shade of a value by its logarithm: 1 to `SHADES`."""
    if not value > 0 or not largest > 0:
        return 1
    share = 1 + math.log(value / largest) / math.log(RANGE)
    return 1 + max(0, min(SHADES - 1, math.ceil(share * (SHADES - 1) - 1e-9)))


@dataclass(frozen=True)
class Mark:
    """A recipe on the chart of KL and size."""

    x: float
    y: float
    kind: str
    """``plan``, ``tried``, ``current`` or ``rule``: how it is drawn."""
    label: str
    title: str
    low: float = 0.0
    high: float = 0.0
    """Ends of its error bar; the same where it has none."""
    label_y: float = 0.0
    """Base line of the label, below those of marks nearby."""


@dataclass(frozen=True)
class SizeChart:
    """KL over the size of the artefact, KL on a logarithmic axis."""

    width: float
    height: float
    left: float
    bottom: float
    line: str
    """Points of the predicted frontier, for a polyline."""
    marks: list[Mark]
    x: list[tuple[str, float]]
    y: list[tuple[str, float]]


def size_chart(document: s.ReportDocument) -> SizeChart | None:
    """Recipes and finished checkpoints by size and KL; None if there are none."""
    points = list(_points(document))
    plan = document.plan
    frontier: list[tuple[int, float]] = []
    if not isinstance(plan, UnsetType):
        frontier = [(p.bytes, p.kl) for p in plan.frontier if p.kl is not None and p.kl > 0]
    if len(points) + len(frontier) < 2:
        return None
    height, left, bottom = 340.0, 66.0, 302.0
    sizes = [float(size) for size, *_ in [*points, *frontier]]
    x = spanning(sizes, left, WIDTH - 16)
    spread = [kl for _, kl in frontier]
    spread += [kl + end for _, kl, error, *_ in points for end in (-error, error)]
    y = spanning(spread, bottom, 14.0, log=True)
    marks = [
        Mark(
            x.at(size), y.at(kl), kind, label, title,
            y.at(max(kl - error, y.low)), y.at(kl + error),
        )
        for size, kl, error, kind, label, title in points
    ]  # fmt: skip
    marks = _labelled(marks)
    line = " ".join(f"{x.at(size)},{y.at(kl)}" for size, kl in sorted(frontier))
    return SizeChart(
        WIDTH, height, left, bottom, line, marks,
        [(n.size(value), x.at(value)) for value in x.ticks()],
        [(n.short(1000 * value), y.at(value)) for value in y.ticks()],
    )  # fmt: skip


def _labelled(marks: list[Mark]) -> list[Mark]:
    """Marks whose labels do not lie on each other."""
    taken: list[tuple[float, float]] = []
    found = []
    for mark in marks:
        y = mark.y - 7
        while mark.label and any(
            abs(mark.x - other) < LABEL_WIDTH and abs(y - line) < LABEL_HEIGHT
            for other, line in taken
        ):
            y += LABEL_HEIGHT
        if mark.label:
            taken.append((mark.x, y))
        found.append(replace(mark, label_y=round(y, 1)))
    return found


Point = tuple[int, float, float, str, str, str]


def _points(document: s.ReportDocument) -> Iterator[Point]:
    """Size, KL, half its interval, how it is drawn, label, title."""
    for tried in document.tried:
        score = tried.measured
        if isinstance(score, UnsetType) or not score.kl or score.kl <= 0:
            continue
        half = (document.interval_factor or 0.0) * (score.kl_se or 0.0)
        title = f"{tried.name}: {n.size(tried.bytes)}, KL·10³ {n.short(1000 * score.kl)}"
        kind = "current" if tried.current else "tried"
        yield tried.bytes, score.kl, half, kind, "this recipe" if tried.current else "", title
    for each in document.compared:
        if isinstance(each.kl, UnsetType) or not each.kl or each.kl <= 0:
            continue
        error = 0.0 if isinstance(each.kl_se, UnsetType) else each.kl_se or 0.0
        title = f"{each.name}: {n.size(each.bytes)}, KL·10³ {n.short(1000 * each.kl)}"
        half = (document.interval_factor or 0.0) * error
        yield each.bytes, each.kl, half, "finished", each.name, title
    if isinstance(document.plan, UnsetType):
        return
    for name, point in document.plan.baselines.items():
        if point.kl is not None and point.kl > 0:
            title = f"{name}: {n.size(point.bytes)}, KL·10³ ≈{n.short(1000 * point.kl)}"
            yield point.bytes, point.kl, 0.0, "rule", name, title


@dataclass(frozen=True)
class HistogramChart:
    """Weights of one layer, counts on a logarithmic scale."""

    layer: str
    width: float
    height: float
    bars: list[tuple[float, float, float]] = field(default_factory=list)
    """Left edge, top and height."""
    step: float = 0.0
    low: str = ""
    high: str = ""
    std: str = ""


def histogram_charts(document: s.ReportDocument) -> list[HistogramChart]:
    """A small chart of every histogram there is."""
    return [_histogram(each) for each in document.histograms]


def _histogram(
    found: s.HistogramPart, width: float = 280.0, height: float = 76.0
) -> HistogramChart:
    # So many bins are enough for a small picture.
    fold = max(1, math.ceil(len(found.counts) / 90))
    counts = [sum(found.counts[at : at + fold]) for at in range(0, len(found.counts), fold)]
    most = max(counts, default=0)
    axis = Axis(0.0, math.log1p(most) or 1.0, 0.0, height)
    step = width / max(1, len(counts))
    tall = [axis.at(math.log1p(count)) for count in counts]
    bars = [
        (round(at * step, 2), round(height - high, 1), high) for at, high in enumerate(tall) if high
    ]
    low, high = (n.significant(x) if x is not None else "" for x in (found.low, found.high))
    std = n.significant(found.std) if found.std is not None else ""
    return HistogramChart(found.layer, width, height, bars, round(step, 2), low, high, std)
