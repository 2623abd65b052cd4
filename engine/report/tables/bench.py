"""What was timed as lines: the runtime and its settings, then one line for each batch size."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from engine.report import schema as s
from engine.report.tables.layout import named, paragraphs, table
from engine.report.wording import size

HEADINGS = (
    *("batch", "prompt", "new", "prompt tok/s", "new tok/s", "p50 ms", "p90 ms"),
    *("memory", "device"),
)


def bench_text(document: s.BenchDocument) -> str:
    """A finished checkpoint that was timed: where and how, then every batch size."""
    spent = document.timings.get("load_s")
    lines = [
        ["artefact", f"{document.artefact}, {size(document.bytes)} of weights"],
        ["runtime", f"{document.runtime}, by {document.version}"],
        ["device", f"{document.device}; {document.threads} threads of {document.processor}"],
    ]
    if document.settings:
        settings = ", ".join(f"{name} {value}" for name, value in document.settings.items())
        lines.append(["settings", settings])
    if spent is not None:
        lines.append(["loaded in", f"{spent:.1f} s"])
    runs = document.batches[0].runs if document.batches else 0
    lines.append(["runs", f"{runs}, after {document.warmup} that do not count; ± standard error"])
    lines += [["note", each] for each in document.notes]
    rows = [_row(each) for each in document.batches]
    keep = [at for at in range(len(HEADINGS)) if any(row[at] for row in rows)]
    shown = table(
        [HEADINGS[at] for at in keep], [[row[at] for at in keep] for row in rows], left=set()
    )
    return paragraphs(named(lines), shown)


def _row(of: s.BenchBatch) -> list[str]:
    return [
        str(of.batch),
        str(of.prompt),
        str(of.new),
        _rate(of.prompt_tokens_per_s, of.prompt_tokens_per_s_se),
        _rate(of.tokens_per_s, of.tokens_per_s_se),
        _milliseconds(of.p50_ms),
        _milliseconds(of.p90_ms),
        "" if of.peak_bytes is UNSET else size(of.peak_bytes),
        "" if of.device_bytes is UNSET else size(of.device_bytes),
    ]


def _rate(value: s.Number, se: s.Number | UnsetType) -> str:
    if value is None:
        return "?"
    return f"{value:.1f}" + (f" ± {se:.1f}" if isinstance(se, float) else "")


def _milliseconds(value: s.Number | UnsetType) -> str:
    return f"{value:.2f}" if isinstance(value, float) else ""
