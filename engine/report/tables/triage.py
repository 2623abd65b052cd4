"""A triage as a table: layers with the largest error first."""

from __future__ import annotations

import math

from msgspec import UnsetType

from engine.report import schema as s
from engine.report.characters import printable
from engine.report.tables.cells import NOT_KNOWN, figure, order, share
from engine.report.tables.layout import paragraphs, table
from engine.report.tables.parts import about, fallback_lines, spent


def triage_text(document: s.TriageDocument) -> str:
    """A triage: layers with the largest error first."""
    formats = list(
        dict.fromkeys(
            format
            for layer in document.layers
            if not isinstance(layer.errors, UnsetType)
            for format in layer.errors
        )
    )
    headings = ["layer", "shape", "dtype", "outliers", "waste", "kurtosis", "faults", *formats]
    rows = [
        [
            layer.name,
            "x".join(map(str, layer.shape)),
            layer.dtype,
            NOT_KNOWN if isinstance(layer.outliers, UnsetType) else share(layer.outliers.fraction),
            NOT_KNOWN if isinstance(layer.waste, UnsetType) else share(layer.waste),
            figure(layer.kurtosis, 1),
            _faults(layer),
            *(_error(layer, format) for format in formats),
        ]
        for layer in sorted(document.layers, key=_worst_error, reverse=True)
    ]
    return paragraphs(
        about(document.model),
        ""
        if isinstance(document.remarks, UnsetType)
        else "\n".join(map(printable, document.remarks)),
        table(headings, rows, left={0, 1, 2, 6}),
        _legend(document),
        _activations(document),
        fallback_lines(document.fallbacks),
        _last_line(document),
        spent(document.timings, document.resumed),
    )


def _last_line(document: s.TriageDocument) -> str:
    """The verdict; without one, what weights alone tell."""
    if not isinstance(document.verdict, UnsetType):
        return printable(document.verdict.sentence)
    return "" if isinstance(document.outlook, UnsetType) else printable(document.outlook)


def _activations(document: s.TriageDocument) -> str:
    """Inputs of the layers, those with the largest maximum over mean first."""
    rows = []
    for layer in sorted(document.layers, key=_ratio, reverse=True):
        given = layer.input
        if isinstance(given, UnsetType):
            continue
        channels = ", ".join(map(str, given.outlier_channels[:4]))
        more = ", …" if len(given.outlier_channels) > 4 else ""
        rows.append(
            [
                layer.name,
                figure(given.max, 2),
                figure(given.mean, 3),
                figure(given.p99, 2),
                figure(given.ratio, 0),
                str(given.by_median),
                channels + more,
                str(given.massive_tokens),
            ]
        )
    if not rows:
        return ""
    headings = ["input of", "max", "mean", "p99", "max/mean", "outliers", "channels", "massive"]
    said = (
        "outliers: channels above 6 times the median channel's maximum; massive: tokens whose norm "
        "is 20 times the median"
    )
    return table(headings, rows, left={0, 6}) + "\n" + said


def _ratio(layer: s.TriageLayer) -> float:
    given = layer.input
    return -math.inf if isinstance(given, UnsetType) or given.ratio is None else given.ratio


def _legend(document: s.TriageDocument) -> str:
    sigma = next(
        (x.outliers.sigma for x in document.layers if not isinstance(x.outliers, UnsetType)), None
    )
    beyond = "" if sigma is None else f"outliers: weights beyond {sigma:g} σ; "
    return f"{beyond}waste: share of a uniform grid spent on them; errors: ‖W − Ŵ‖ / ‖W‖"


def _faults(layer: s.TriageLayer) -> str:
    named = (("NaN", layer.nan), ("inf", layer.inf), ("zero rows", layer.zero_rows))
    return ", ".join(f"{found} {name}" for name, found in named if found)


def _error(layer: s.TriageLayer, format: str) -> str:
    if isinstance(layer.errors, UnsetType) or format not in layer.errors:
        return NOT_KNOWN
    return share(layer.errors[format].relative)


def _worst_error(layer: s.TriageLayer) -> float:
    if isinstance(layer.errors, UnsetType):
        return -math.inf
    return max((order(error.relative) for error in layer.errors.values()), default=-math.inf)
