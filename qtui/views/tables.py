"""Documents as a person reads them: columns that line up, the worst layers first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from msgspec import UnsetType
from rich.cells import cell_len

from engine import protocol as p
from engine.report import schema as s
from qtui.views.text import clock, count, instead, perplexity, printable, short, size

NOT_KNOWN = "-"


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
        table(headings, rows, left={0, 1, 2, 6}),
        _legend(document),
        fallback_lines(document.fallbacks),
        spent(document.timings, document.resumed),
    )


def _legend(document: s.TriageDocument) -> str:
    sigma = next(
        (x.outliers.sigma for x in document.layers if not isinstance(x.outliers, UnsetType)), None
    )
    beyond = "" if sigma is None else f"outliers: weights beyond {sigma:g} σ; "
    return f"{beyond}waste: share of a uniform grid spent on them; errors: ‖W − Ŵ‖ / ‖W‖"


def eval_text(document: s.EvalDocument) -> str:
    """An evaluation: the recipe beside the unchanged model."""
    recipe = document.recipe
    low, high = (_ppl(each) for each in recipe.ppl_ci95)
    lines = [
        ["recipe", recipe.name],
        ["PPL", f"{_ppl(recipe.ppl)}  (95%: {low} … {high})"],
        ["NLL", f"{figure(recipe.nll, 4)} nats per token"],
        ["ΔNLL", f"{figure(recipe.dnll, 4)} ± {figure(recipe.dnll_se, 4)} (standard error)"],
        ["KL", f"{figure(recipe.kl, 5)} ± {figure(recipe.kl_se, 5)} nats per token"],
        ["top-1", f"{share(recipe.top1_agreement)} of positions agree"],
    ]
    if not isinstance(recipe.bits_per_weight, UnsetType):
        lines.append(["bits", f"{figure(recipe.bits_per_weight, 2)} per weight"])
    if not isinstance(recipe.bytes, UnsetType):
        lines.append(["size", size(recipe.bytes)])
    return paragraphs(
        about(document.model),
        protocol_lines(document.protocol, document.baseline),
        _named(lines),
        fallback_lines(document.fallbacks),
        spent(document.timings, document.resumed),
    )


def export_text(document: s.ExportDocument) -> str:
    """An export: what was written where, and how large it is."""
    held = Counter(document.recipe.values())
    formats = ", ".join(f"{many} in {format}" for format, many in held.most_common())
    bits = figure(document.bits_per_weight, 2)
    lines = [
        ["folder", document.folder],
        ["size", f"{size(document.bytes)}, of {size(document.checkpoint.bytes)}"],
        ["layers", f"{formats}; {document.layers} stored as codes"],
        ["bits", f"{bits} per weight"],
    ]
    return paragraphs(
        about(document.checkpoint),
        _named(lines),
        "\n".join(f"note: {printable(note)}" for note in document.notes),
        fallback_lines(document.fallbacks),
        spent(document.timings, 0),
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: set[int]) -> str:
    """Rows under headings, every column as wide as its widest cell.

    Args:
        headings: one a column.
        rows: cells of each; control characters are written out.
        left: columns that are words, set to the left; figures stand to the right.
    """
    cells = [[printable(cell) for cell in row] for row in [headings, *rows]]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            _pad(cell, width, at in left)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def _named(lines: Sequence[Sequence[str]]) -> str:
    """Values beside their names."""
    width = max(cell_len(name) for name, _ in lines)
    return "\n".join(f"{_pad(name, width, True)}  {printable(value)}" for name, value in lines)


def _pad(cell: str, width: int, left: bool) -> str:
    room = " " * (width - cell_len(cell))
    return cell + room if left else room + cell


def paragraphs(*texts: str) -> str:
    """Texts with an empty line between them; empty ones are left out."""
    return "\n\n".join(text for text in texts if text) + "\n"


def about(model: s.Model) -> str:
    """The checkpoint in a line."""
    return (
        f"{printable(model.name)}: {count(model.params)} parameters, {size(model.bytes)}, "
        f"fingerprint {printable(model.fingerprint[:12])}"
    )


def protocol_lines(protocol: p.Protocol, baseline: s.BaselinePart | UnsetType) -> str:
    """The unchanged model's score, and what every figure stands on."""
    cut = f"window {protocol.seq_len}"
    if protocol.stride != protocol.seq_len - 1:
        cut += f", {protocol.stride} targets of each"
    lines = [
        f"text: {printable(protocol.text)}, {protocol.tokens:,} tokens, {cut}; "
        f"{protocol.dtype} on {protocol.device}"
    ]
    if not isinstance(baseline, UnsetType):
        lines.insert(
            0, f"PPL {_ppl(baseline.ppl)} unchanged (NLL {figure(baseline.nll, 4)} nats per token)"
        )
    return "\n".join(lines)


def control_line(control: s.ControlPart | UnsetType) -> str:
    """What a change of nothing measured."""
    if isinstance(control, UnsetType):
        return ""
    return (
        "control, a layer swapped for itself: "
        f"|ΔNLL| {_tiny(control.max_abs_dnll)}, KL {_tiny(control.max_abs_kl)} "
        f"(numeric floor: {_tiny(control.floor_dnll)}, {_tiny(control.floor_kl)})"
    )


def additivity_lines(additivity: s.AdditivityPart | UnsetType) -> str:
    """How far single effects may be added up, a line a format."""
    if isinstance(additivity, UnsetType):
        return ""
    return "\n".join(
        f"additivity of {printable(format)}: {figure(found.kl, 2)} "
        f"(KL of {found.layers} layers together over the sum of their own)"
        for format, found in additivity.by_format.items()
    )


def fallback_lines(fallbacks: Iterable[s.LayerFallback]) -> str:
    """Layers that do not hold what was asked for, a line each."""
    return "\n".join(
        f"fallback: {printable(each.layer)} {instead(each.holds or '')}, "
        f"not {printable(each.format)}: "
        f"{printable(each.why)}"
        for each in fallbacks
    )


def spent(timings: dict[str, s.Number], resumed: int) -> str:
    """Seconds by what they were spent on, and what was not measured again."""
    parts = [
        f"{printable(name.removesuffix('_s'))} {_seconds(seconds)}"
        for name, seconds in timings.items()
        if seconds
    ]
    known = f"{resumed} results were known before" if resumed else ""
    return "; ".join(part for part in (", ".join(parts), known) if part)


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else clock(seconds)


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


def order(value: s.Number) -> float:
    """What cannot be told stands first: it is the worst there is."""
    return math.inf if value is None else value


def share(value: s.Number) -> str:
    """A share as a percentage."""
    if value is None:
        return "not finite"
    return f"{100 * value:.{1 if abs(value) >= 0.0995 else 2}f}%"


def _ppl(value: s.Number) -> str:
    return "not finite" if value is None else perplexity(value)


def thousandth(value: s.Number) -> str:
    """A number of nats in thousandths."""
    return figure(None if value is None else value * 1000, 3)


def figure(value: s.Number | UnsetType, places: int) -> str:
    """A number in so many places."""
    if isinstance(value, UnsetType):
        return NOT_KNOWN
    if value is None:
        return "not finite"
    return f"{value:.{places}f}" if abs(value) < 1e6 else short(value)


def _tiny(value: s.Number) -> str:
    return "not finite" if value is None else f"{value:.1e}" if value else "0"
