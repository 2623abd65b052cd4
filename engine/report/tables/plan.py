"""A plan as lines: the recipe found, and what simpler rules find for the same budget."""

from __future__ import annotations

from collections import Counter

from msgspec import UnsetType

from engine.formats.kernels import kernel_named
from engine.report import schema as s
from engine.report.tables.cells import NOT_KNOWN, figure, ppl, share, thousandth
from engine.report.tables.layout import named, paragraphs, table
from engine.report.tables.parts import about, protocol_lines, spent
from engine.report.wording import size

FRONTIER = 12
"""Recipes of the frontier that are listed."""


def plan_text(document: s.PlanDocument) -> str:
    """A plan: its recipe, the rules beside it, and the frontier."""
    lines = [
        [
            "budget",
            ", ".join(f"{name} {value:g}" for name, value in document.budget.items() if value),
        ],
        ["bits", f"{figure(document.bits_per_weight, 3)} per weight of the body"],
        ["size", size(document.bytes)],
        ["predicted", f"KL·10³ {thousandth(document.predicted.kl)}{_error(document.predicted)}"],
    ]
    if not isinstance(document.measured, UnsetType):
        found = document.measured
        lines.append(
            [
                "measured",
                f"KL·10³ {thousandth(found.kl)} ± {thousandth(found.kl_se)} (standard error), "
                f"PPL {ppl(found.ppl)}",
            ]
        )
    if not isinstance(document.bound.kl, UnsetType):
        lines.append(
            ["bound", f"KL·10³ {thousandth(document.bound.kl)}: none is better by effects"]
        )
    if document.recovered is not None:
        lines.append(
            ["recovered", f"{share(document.recovered)} of the KL of the best uniform recipe"]
        )
    counted = Counter(document.layers.values())
    lines.append(["formats", ", ".join(f"{many} {held}" for held, many in counted.most_common())])
    kernels = [kernel_named(name).title for name in document.kernels]
    if not isinstance(document.unserved, UnsetType):
        kernels.append(f"none for {document.unserved} of {len(document.layers)} layers")
    lines.append(["kernels", ", ".join(kernels) or "16-bit"])
    return paragraphs(
        about(document.model),
        protocol_lines(document.protocol, document.baseline),
        named(lines),
        _rules(document),
        _frontier(document),
        spent(document.timings, document.resumed),
    )


def _rules(document: s.PlanDocument) -> str:
    """This plan beside simpler rules."""
    ours = s.PointPart(
        bits=document.bits_per_weight,
        bytes=document.bytes,
        kl=document.predicted.kl,
        measured=document.measured,
    )
    points = {"this plan": ours, **document.baselines}
    rows = [[name, *_cells(point), _bar(point)] for name, point in points.items()]
    return table(["rule", "bits", "size", "≈KL·10³", "KL·10³", "s.e."], rows, {0})


def _error(predicted: s.PredictedPart) -> str:
    if isinstance(predicted.kl_se, UnsetType):
        return ""
    return f" ± {thousandth(predicted.kl_se)} (of the estimates, not of their adding up)"


def _bar(point: s.PointPart) -> str:
    measured = point.measured
    return NOT_KNOWN if isinstance(measured, UnsetType) else thousandth(measured.kl_se)


def _frontier(document: s.PlanDocument) -> str:
    points = document.frontier
    step = max(1, -(-len(points) // FRONTIER))
    shown = points[::step] if (len(points) - 1) % step == 0 else [*points[::step], points[-1]]
    rows = [_cells(point)[:3] for point in shown]
    return table(["bits", "size", "≈KL·10³"], rows, set()) if rows else ""


def _cells(point: s.PointPart) -> list[str]:
    measured = point.measured
    return [
        figure(point.bits, 3),
        size(point.bytes),
        thousandth(point.kl),
        NOT_KNOWN if isinstance(measured, UnsetType) else thousandth(measured.kl),
    ]
