"""A diagnosis as lines, or as Markdown: the verdict first, findings, what the worst layers cost."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UnsetType

from engine.report import schema as s
from engine.report.characters import printable
from engine.report.tables.cells import NOT_KNOWN, figure, share, thousandth
from engine.report.tables.errors import (
    DRIFT_HEADINGS,
    OUTPUT_HEADINGS,
    drift_rows,
    errors_text,
    output_rows,
    remarks,
)
from engine.report.tables.layout import escaped, markdown, paragraphs, table
from engine.report.tables.parts import about, protocol_lines, spent
from engine.report.wording import bits_more, size

NO_VERDICT = "no verdict: the effects of some layers are not known"
CLEAN = "no findings"
HEADINGS = (
    *("layer", "format", "weight error", "output error", "KL·10³", "≈KL·10³", "bits", "size"),
    *("won/MB", "verdict", "kernels"),
)
LEGEND = "≈ estimated, ? filled in from another format; won/MB: KL·10³ won back for a megabyte more"
WORDS = {0, 1, 9, 10}
"""Columns of words, which begin at the left."""


def diagnosis_text(document: s.DiagnoseDocument) -> str:
    """A diagnosis: verdict, findings, the worst layers in every format."""
    return paragraphs(
        _verdict(document),
        "\n".join(_finding(each) for each in document.findings) or CLEAN,
        table(HEADINGS, _rows(document), WORDS) if document.layers else "",
        LEGEND if document.layers else "",
        errors_text(document),
        about(document.model),
        protocol_lines(document.protocol, document.baseline),
        spent(document.timings, document.resumed),
    )


def diagnosis_markdown(document: s.DiagnoseDocument) -> str:
    """The same as Markdown."""
    lines = [f"- {escaped(_finding(each))}" for each in document.findings] or [CLEAN]
    return paragraphs(
        f"# {escaped(printable(document.model.name))}",
        escaped(_verdict(document)),
        "## Findings",
        "\n".join(lines),
        "## Worst layers",
        markdown(HEADINGS, _rows(document)),
        *_errors(document),
        "## Protocol",
        escaped(about(document.model))
        + "  \n"
        + escaped(protocol_lines(document.protocol, document.baseline)),
    )


def _errors(document: s.DiagnoseDocument) -> list[str]:
    """The errors inside the model, as Markdown."""
    if isinstance(document.errors, UnsetType):
        return []
    found = ["## Errors inside the model"]
    for headings, rows in (
        (OUTPUT_HEADINGS, output_rows(document)),
        (DRIFT_HEADINGS, drift_rows(document)),
    ):
        found.append(markdown(headings, rows))
    return [*found, *map(escaped, remarks(document.errors))]


def _verdict(document: s.DiagnoseDocument) -> str:
    found = document.verdict
    return NO_VERDICT if isinstance(found, UnsetType) else printable(found.sentence)


def _finding(found: s.FindingPart) -> str:
    where = "" if isinstance(found.layer, UnsetType) else f"{printable(found.layer)}: "
    said = f"{found.severity}: {where}{printable(found.sentence)}"
    fix = found.fix
    if isinstance(fix, UnsetType):
        return said
    cost = bits_more(fix.bits or 0.0)
    mark = "" if fix.measured else "≈"
    return f"{said}; {printable(fix.format)} wins back {mark}{share(fix.recovered)} {cost}"


def _rows(document: s.DiagnoseDocument) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for layer in document.layers:  # those of a recipe alone have no fixes
        for at, each in enumerate(layer.fixes):
            rows.append(
                [
                    printable(layer.name) if at == 0 else "",
                    printable(each.format),
                    _share(each.weight_error),
                    _share(each.output_error),
                    _kl(each.kl_measured),
                    _kl(each.kl_estimated) + ("?" if each.filled else ""),
                    figure(each.bits, 2),
                    size(each.bytes),
                    _won(each.kl_per_megabyte),
                    printable(each.verdict),
                    " ".join(each.kernels) or "none",
                ]
            )
    return rows


def _won(value: s.Number | UnsetType) -> str:
    """KL won back per megabyte more; a smaller layer that wins any back has no price."""
    return NOT_KNOWN if isinstance(value, UnsetType) else "free" if value is None else _kl(value)


def _share(value: s.Number | UnsetType) -> str:
    return NOT_KNOWN if isinstance(value, UnsetType) else share(value)


def _kl(value: s.Number | UnsetType) -> str:
    return NOT_KNOWN if isinstance(value, UnsetType) else thousandth(value)
