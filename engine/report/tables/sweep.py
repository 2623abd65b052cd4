"""A sweep as tables: the largest KL first, estimates marked ``≈``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from msgspec import UnsetType

from engine.report import schema as s
from engine.report.characters import printable
from engine.report.tables.cells import figure, order, share, thousandth
from engine.report.tables.layout import paragraphs, table
from engine.report.tables.parts import (
    about,
    additivity_lines,
    control_line,
    fallback_lines,
    protocol_lines,
    spent,
)

ABOUT, DOUBT, BELOW = "≈", "?", "<floor"
FIGURES = ("KL·10³", "s.e.", "≈KL·10³", "ΔNLL·10³", "s.e.", "ΔPPL", "95%", "top-1", "tokens", "")
WAYS = {
    "degrade": "each alone quantised; the rest is as stored",
    "restore": "each alone kept, the rest quantised: what that wins back",
}


def sweep_text(document: s.SweepDocument) -> str:
    """A sweep: largest KL first, measured or estimated."""
    layers = sorted(document.layers, key=_kl, reverse=True)
    rows = [[layer.name, layer.format, *_figures(layer)] for layer in layers]
    units = [] if isinstance(document.units, UnsetType) else document.units
    return paragraphs(
        about(document.model),
        protocol_lines(document.protocol, document.baseline),
        f"{document.direction}: {WAYS[document.direction]}",
        _units(units),
        _fitting(("layer", "format", *FIGURES), rows, 2) if rows else "",
        _estimated(document),
        _signs([*document.layers, *units]),
        _agreement(document.agreement),
        control_line(document.control),
        additivity_lines(document.additivity),
        fallback_lines(document.fallbacks),
        spent(document.timings, document.resumed),
        "" if isinstance(document.verdict, UnsetType) else printable(document.verdict.sentence),
    )


def _fitting(headings: Sequence[str], rows: list[list[str]], words: int) -> str:
    """A table without empty columns; the first ``words`` columns are text."""
    used = [at for at in range(len(headings)) if any(row[at] not in ("", "-") for row in rows)]
    return table(
        [headings[at] for at in used],
        [[row[at] for at in used] for row in rows],
        left={place for place, at in enumerate(used) if at < words or not headings[at]},
    )


def _kl(found: s.SweepLayer | s.SweepUnit) -> float:
    return order(_shown(found))


def _shown(found: s.SweepLayer | s.SweepUnit) -> s.Number:
    """The KL to show: measured, else expected from the estimate."""
    if not isinstance(found.measured, UnsetType):
        return found.measured.kl
    return math.nan if isinstance(found.estimate, UnsetType) else _expected(found.estimate)


def _expected(estimate: s.EstimatePart) -> s.Number:
    corrected = estimate.corrected_kl
    return estimate.kl if isinstance(corrected, UnsetType) else corrected


def _figures(found: s.SweepLayer | s.SweepUnit) -> list[str]:
    """Cells under `FIGURES`."""
    measured, estimate = found.measured, found.estimate
    guess = "" if isinstance(estimate, UnsetType) else ABOUT + thousandth(estimate.kl)
    if isinstance(measured, UnsetType):
        if isinstance(estimate, UnsetType):
            return [""] * len(FIGURES)
        return [
            ABOUT + thousandth(_expected(estimate)),
            thousandth(estimate.kl_se),
            guess,
            ABOUT + thousandth(estimate.dnll),
            thousandth(estimate.dnll_se),
            *("", "", ""),
            f"{estimate.tokens:,}",
            "" if isinstance(estimate.doubt, UnsetType) else DOUBT,
        ]
    low, high = measured.dppl_ci95
    return [
        thousandth(measured.kl),
        thousandth(measured.kl_se),
        guess,
        thousandth(measured.dnll),
        thousandth(measured.dnll_se),
        figure(measured.dppl, 3),
        f"{figure(low, 3)} … {figure(high, 3)}",
        share(measured.top1_agreement),
        f"{measured.tokens:,}",
        "" if isinstance(measured.below_floor, UnsetType) else BELOW,
    ]


def _units(units: Sequence[s.SweepUnit]) -> str:
    if not units:
        return ""
    rows = [
        [unit.name, str(len(unit.layers)), unit.format, *_figures(unit)]
        for unit in sorted(units, key=_kl, reverse=True)
    ]
    return _fitting((units[0].by, "layers", "format", *FIGURES), rows, 1)


def _estimated(document: s.SweepDocument) -> str:
    """One row per layer, one column per further format."""
    found = document.estimated
    if isinstance(found, UnsetType):
        return ""
    formats = list(dict.fromkeys(layer.format for layer in found))
    known: dict[str, dict[str, str]] = {}
    worst: dict[str, float] = {}
    for layer in found:
        estimate = layer.estimate
        doubted = not isinstance(estimate, UnsetType) and not isinstance(estimate.doubt, UnsetType)
        sign = "" if not isinstance(layer.measured, UnsetType) else ABOUT
        cell = f"{sign}{thousandth(_shown(layer))}{DOUBT if doubted and sign else ''}"
        known.setdefault(layer.name, {})[layer.format] = cell
        worst[layer.name] = max(worst.get(layer.name, -math.inf), _kl(layer))
    rows = [
        [name, *(known[name].get(format, "-") for format in formats)]
        for name in sorted(known, key=worst.__getitem__, reverse=True)
    ]
    return "KL·10³ in other formats\n" + table(["layer", *formats], rows, left={0})


def _signs(found: Iterable[s.SweepLayer | s.SweepUnit]) -> str:
    """Explanations of the signs used with the figures, if any."""
    lines = []
    doubts: dict[tuple[str, str], int] = {}
    below = False
    for each in found:
        measured, estimate = each.measured, each.estimate
        if isinstance(measured, UnsetType):
            if not isinstance(estimate, UnsetType) and not isinstance(estimate.doubt, UnsetType):
                key = each.format, estimate.doubt
                doubts[key] = doubts.get(key, 0) + 1
        elif not isinstance(measured.below_floor, UnsetType):
            below = True
    for (format, why), many in doubts.items():
        lines.append(f"{DOUBT} {many} estimates of {printable(format)} may not hold: {why}")
    if below:
        lines.append(f"{BELOW}: below what rounding alone may cause")
    return "\n".join(map(printable, lines))


def _agreement(found: dict[str, s.AgreementPart] | UnsetType) -> str:
    if isinstance(found, UnsetType):
        return ""
    return "\n".join(
        f"estimate and measurement of {printable(format)}: rank correlation of KL "
        f"{figure(each.rank_kl, 3)}, of ΔNLL {figure(each.rank_dnll, 3)}, over {each.layers} "
        f"layers; measured over estimated KL {figure(each.ratio, 2)} (median)"
        for format, each in found.items()
    )
