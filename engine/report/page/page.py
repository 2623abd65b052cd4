"""A `ReportDocument` as one HTML page."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from msgspec import UnsetType

from engine.report import schema as s
from engine.report import wording as n
from engine.report.characters import printable
from engine.report.page.charts import SHADES, heat_map, histogram_charts, size_chart
from engine.report.tables.asked import asked_tables
from engine.report.tables.calibration import legend, matrix, warning_lines
from engine.report.tables.cells import share
from engine.report.tables.parts import fallback_sentences
from engine.report.tables.report import (
    Row,
    facts,
    finding_fix,
    finished_rows,
    fix_rows,
    formats_used,
    protocol_facts,
    tried_rows,
    worst_rows,
)

LISTED = 2000
"""Layers in the table of all layers; the JSON document has every one."""


def report_page(document: s.ReportDocument) -> str:
    """The page: one file, without scripts, that requests nothing.

    Every string is escaped for HTML, and control characters of names are replaced.
    """
    environment = Environment(
        loader=PackageLoader("engine.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    worst = worst_rows(document)
    return environment.get_template("page.html").render(
        name=document.model.name.rstrip("/").rsplit("/", 1)[-1],
        doc=document,
        facts=facts(document),
        verdict=None if isinstance(document.verdict, UnsetType) else document.verdict.sentence,
        findings=[(each, finding_fix(each), _where(each)) for each in document.findings],
        map=heat_map(document),
        shades=range(1, SHADES + 1),
        chart=size_chart(document),
        worst=worst,
        most=max((row.kl or 0.0 for row in worst), default=0.0) or 1.0,
        histograms={each.layer: each for each in histogram_charts(document)},
        fixes=fix_rows(document),
        used=formats_used(document),
        tried=tried_rows(document),
        finished=finished_rows(document.compared),
        asked=[] if isinstance(document.asked, UnsetType) else document.asked,
        tables=asked_tables,
        calibration=_calibration(document),
        wrong=[(each.name, found) for each in document.compared for found in each.findings],
        layers=[_layer(document, layer) for layer in document.layers[:LISTED]],
        left_out=max(0, len(document.layers) - LISTED),
        fallbacks=fallback_sentences(document.fallbacks),
        protocol=protocol_facts(document),
        commands=document.commands,
    )


def _calibration(document: s.ReportDocument) -> list[tuple[Any, ...]]:
    """Calibration sets that were compared: method, headings, rows, what is best, warnings."""
    if isinstance(document.calibration_sets, UnsetType):
        return []
    return [
        (each.method, *matrix(each.texts, each.sets), legend(each.sets), warning_lines(each.sets))
        for each in document.calibration_sets
    ]


def _shown(value: Any) -> Any:
    """A value as it is printed: text from a checkpoint without control characters."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return printable(value)


def _where(found: s.FindingPart) -> str:
    return "" if isinstance(found.layer, UnsetType) else found.layer


def _layer(document: s.ReportDocument, layer: s.ReportLayer) -> dict[str, str]:
    row = Row.of(document, layer)
    error = layer.errors.get(document.format)
    return {
        "name": layer.name,
        "shape": " × ".join(map(str, layer.shape)),
        "holds": layer.holds,
        "bits": f"{layer.bits:.2f}" if layer.bits is not None else "",
        "size": n.size(layer.bytes),
        "error": "" if error is None else share(error),
        "kl": row.kl_text,
        "dppl": row.dppl_text,
        "category": layer.category,
        "advice": row.advice,
        "changed": "changed" if layer.name in document.recipe.layers else "",
    }
