"""An export as lines: what was written where, and its size."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from engine.report import schema as s
from engine.report.characters import printable
from engine.report.tables.cells import bits_per_weight
from engine.report.tables.layout import named, paragraphs
from engine.report.tables.parts import about, fallback_lines, spent
from engine.report.wording import size


def export_text(document: s.ExportDocument) -> str:
    """An export: what was written where, and its size."""
    held = Counter(document.recipe.values())
    formats = ", ".join(f"{many} in {format}" for format, many in held.most_common())
    lines = [
        ["file" if _is_file(document) else "folder", document.folder],
        ["size", f"{size(document.bytes)}, of {size(document.checkpoint.bytes)}"]
        if document.codes
        else ["for", document.to],
        ["layers", f"{formats}; {document.layers} stored as codes" if document.codes else formats],
        ["bits", bits_per_weight(document.bits_per_weight, document.bits_all)],
    ]
    return paragraphs(
        about(document.checkpoint),
        named(lines),
        "\n".join(f"note: {printable(note)}" for note in document.notes),
        fallback_lines(document.fallbacks),
        spent(document.timings, 0),
    )


def _is_file(document: s.ExportDocument) -> bool:
    return not document.codes or Path(document.folder).is_file()
