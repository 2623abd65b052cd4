"""An importance matrix as lines: what was written where, from which text."""

from __future__ import annotations

from collections import Counter

from engine.report import schema as s
from engine.report.tables.layout import named, paragraphs
from engine.report.tables.parts import about, spent
from engine.report.wording import size


def imatrix_text(document: s.ImatrixDocument) -> str:
    """An importance matrix: what was written where, from which text."""
    text = document.calibration
    lines = [
        ["file", document.file],
        ["size", f"{size(document.bytes)}, {document.weights} weights"],
        ["text", f"{text.text}, {text.tokens:,} tokens"],
        *(
            ["left out", f"{next(n for n, w in document.left.items() if w == why)}: {why}"]
            if many == 1
            else ["left out", f"{many} layers: {why}"]
            for why, many in Counter(document.left.values()).items()
        ),
    ]
    return paragraphs(about(document.checkpoint), named(lines), spent(document.timings, 0))
