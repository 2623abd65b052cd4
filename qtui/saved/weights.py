"""Tables of one layer's weights: its histogram, and its experts."""

from __future__ import annotations

from collections.abc import Sequence

from engine import protocol as p
from engine.report.figures.registry import expert_figures
from qtui.saved.notes import measured_by, model_name, notes_of, under_cursor
from qtui.saved.view import SavedTable, View

HISTOGRAM_BINS = p.AskHistogram("").bins


def histogram(view: View) -> SavedTable:
    """Counts of the weights of the layer under the cursor, a bin a row."""
    name, _ = under_cursor(view)
    found = view.session.histograms[name]
    extra = ["--histogram", name]
    if len(found.counts) != HISTOGRAM_BINS:
        extra += ["--bins", str(len(found.counts))]
    if found.format:
        extra += ["--formats", found.format]
    notes = notes_of(view) | {"layer": name, "mean": repr(found.mean), "std": repr(found.std)}
    if found.format:
        notes["grid"] = " ".join([f"{found.format}:", *map(repr, found.grid)])
        notes["step"] = repr(found.step)
    edges = bin_edges(found)
    return SavedTable(
        schema="qtui.saved-histogram/1",
        title=f"weights of {name} of {model_name(view)} in {len(found.counts)} bins",
        command=measured_by(view, "triage", [*extra, "--json", "-"]),
        columns=("low", "high", "count"),
        rows=list(zip(edges, edges[1:], found.counts, strict=False)),
        notes=notes,
    )


def bin_edges(found: p.HistogramReady) -> list[float]:
    """Edges of the bins, one more than there are bins."""
    bins = len(found.counts)
    width = (found.high - found.low) / bins if bins else 0.0
    return [found.low + number * width for number in range(bins)] + [found.high]


def experts(view: View) -> SavedTable:
    """The experts of the fused layer under the cursor, one a row."""
    name, _ = under_cursor(view)
    found = view.session.experts[name]
    read = tuple(found.relative)
    columns: dict[str, Sequence[float]] = {}
    for figure in expert_figures():
        assert figure.experts is not None
        if figure.experts.by_format:
            for format in read:
                columns[f"{figure.experts.name}_{format}"] = figure.experts.read(found, format)
        else:
            columns[figure.experts.name] = figure.experts.read(found, "")
    return SavedTable(
        schema="qtui.saved-experts/1",
        title=f"{len(found.std)} experts of {name} of {model_name(view)}",
        command=measured_by(
            view, "triage",
            ["--experts", name, *(("--formats", ",".join(read)) if read else ()), "--json", "-"],
        ),
        columns=("expert", *columns),
        rows=list(zip(range(len(found.std)), *columns.values(), strict=True)),
        notes=notes_of(view) | {"layer": name},
    )  # fmt: skip
