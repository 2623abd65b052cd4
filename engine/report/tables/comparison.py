"""A comparison as text: finished checkpoints side by side, then each one's worst layers."""

from __future__ import annotations

from msgspec import UnsetType

from engine.formats.spacing import evenly_spaced
from engine.report import schema as s
from engine.report.characters import printable
from engine.report.tables.cells import figure, ppl, share
from engine.report.tables.layout import escaped, markdown, paragraphs, table
from engine.report.tables.parts import about, protocol_lines, spent
from engine.report.wording import size

HEADINGS = ["checkpoint", "stored as", "bits", "size", "KL·10³", "±", "PPL", "top-1"]
WORST = 12
"""Layers of each finished checkpoint that are listed."""


def comparison_text(document: s.CompareDocument) -> str:
    """Finished checkpoints against their original: the best first, then layer by layer."""
    return paragraphs(
        about(document.reference),
        ""
        if isinstance(document.protocol, UnsetType)
        else protocol_lines(document.protocol, document.baseline),
        _side_by_side(document.artefacts),
        *(text for each in document.artefacts for text in _one(each)),
        spent(document.timings, document.resumed),
    )


def comparison_markdown(document: s.CompareDocument) -> str:
    """The same as Markdown: all finished checkpoints, then the findings and layers of each."""
    return paragraphs(
        f"# {escaped(printable(document.reference.name))}: finished checkpoints",
        markdown(HEADINGS, _rows(document.artefacts)),
        *(text for each in document.artefacts for text in _one_markdown(each)),
        "## Protocol",
        escaped(about(document.reference)),
        ""
        if isinstance(document.protocol, UnsetType)
        else escaped(protocol_lines(document.protocol, document.baseline)),
    )


def _one_markdown(artefact: s.ArtefactPart) -> list[str]:
    headings, rows = _worst_rows(artefact)
    found = [
        f"- {each.severity}: {escaped(printable(each.sentence))}" for each in artefact.findings
    ]
    return [
        f"## {escaped(printable(artefact.name))}",
        escaped(_told(artefact)),
        "\n".join(found),
        markdown(headings, rows) if rows else "",
    ]


def _side_by_side(artefacts: list[s.ArtefactPart]) -> str:
    return table(HEADINGS, _rows(artefacts), {0, 1})


def _rows(artefacts: list[s.ArtefactPart]) -> list[list[str]]:
    def order(each: s.ArtefactPart) -> float:
        return float("inf") if isinstance(each.kl, UnsetType) or each.kl is None else each.kl

    return [
        [
            each.name,
            each.layout,
            figure(each.bits_per_weight, 2),
            size(each.bytes),
            _thousandth(each.kl),
            _thousandth(each.kl_se),
            "" if isinstance(each.ppl, UnsetType) else ppl(each.ppl),
            "" if isinstance(each.top1_agreement, UnsetType) else share(each.top1_agreement),
        ]
        for each in sorted(artefacts, key=order)
    ]


def _one(artefact: s.ArtefactPart) -> list[str]:
    """Its findings, how its layers were rounded, and the worst of them."""
    lines = [f"{printable(artefact.name)}: {_told(artefact)}"]
    lines += [f"{each.severity}: {printable(each.sentence)}" for each in artefact.findings]
    return ["\n".join(lines), _worst(artefact)]


def _told(artefact: s.ArtefactPart) -> str:
    """How its layers were rounded."""
    counted: dict[str, int] = {}
    for each in artefact.layers:
        counted[each.rounding] = counted.get(each.rounding, 0) + 1
    said = {
        "same": "as in the original",
        "nearest": "rounded to nearest",
        "solved": "solved",
        "other": "from other weights",
    }
    told = ", ".join(f"{counted[kind]} {words}" for kind, words in said.items() if kind in counted)
    folded = sum((each.folded or 1.0) > 1 for each in artefact.layers)
    return f"{told}; scales of input channels folded into {folded}" if folded else told


def _worst(artefact: s.ArtefactPart) -> str:
    headings, rows = _worst_rows(artefact)
    if not rows:
        return ""
    more = sum(each.rounding != "same" for each in artefact.layers) - len(rows)
    note = f"\n… and {more} more; --json has all" if more > 0 else ""
    return table(headings, rows, {0, 1, 4}) + note


def _worst_rows(artefact: s.ArtefactPart) -> tuple[list[str], list[list[str]]]:
    """The layers that cost most: by what giving them back wins, else by their errors."""

    def order(each: s.ComparedLayer) -> tuple[float, float]:
        win = each.sensitivity
        measured = float("-inf") if isinstance(win, UnsetType) or win.kl is None else win.kl
        return -measured, -(each.errors.relative or 0.0)

    layers = [each for each in artefact.layers if each.rounding != "same"]
    any_win = any(not isinstance(each.sensitivity, UnsetType) for each in layers)
    rows = []
    for each in sorted(layers, key=order)[:WORST]:
        win = None if isinstance(each.sensitivity, UnsetType) else each.sensitivity
        rows.append(
            [
                each.name,
                each.format,
                figure(each.bits, 2),
                share(each.errors.relative),
                each.rounding,
                figure(each.steps, 2) if evenly_spaced(each.format) else "-",
                *([_thousandth(None if win is None else win.kl)] if any_win else []),
            ]
        )
    headings = ["layer", "stored as", "bits", "error", "rounding", "in steps"]
    if any_win:
        headings.append("given back: KL·10³")
    return headings, rows


def _thousandth(value: s.Number | UnsetType) -> str:
    if isinstance(value, UnsetType) or value is None:
        return ""
    return figure(1000 * value, 2)
