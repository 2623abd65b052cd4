"""A comparison as text: finished checkpoints side by side, then each one's worst layers."""

from __future__ import annotations

from msgspec import UnsetType

from engine.formats.spacing import evenly_spaced
from engine.report import schema as s
from engine.report.characters import printable
from engine.report.tables.cells import figure, ppl, share
from engine.report.tables.divergence import divergences
from engine.report.tables.layout import escaped, markdown, paragraphs, table
from engine.report.tables.parts import about, protocol_lines, spent
from engine.report.tables.scatter import Point, scatter
from engine.report.wording import counted, size

HEADINGS = ["checkpoint", "stored as", "bits", "size", "KL·10³", "±", "PPL", "top-1"]
STORED = 4
"""Columns that the file alone tells; those of scores follow."""
WORST = 12
"""Layers of each finished checkpoint that are listed."""


def comparison_text(document: s.CompareDocument) -> str:
    """Finished checkpoints against their original: the best first, then layer by layer."""
    return paragraphs(
        _reference(document),
        ""
        if isinstance(document.protocol, UnsetType)
        else protocol_lines(document.protocol, document.baseline),
        table(*_side_by_side(document.artefacts), {0, 1}),
        _plot(document.artefacts),
        divergences({each.name: each.divergence for each in document.artefacts}),
        *(text for each in document.artefacts for text in _one(each)),
        spent(document.timings, document.resumed),
    )


def comparison_markdown(document: s.CompareDocument) -> str:
    """The same as Markdown: all finished checkpoints, then the findings and layers of each."""
    return paragraphs(
        f"# {_heading(document)}",
        markdown(*_side_by_side(document.artefacts)),
        f"```text\n{plot}\n```" if (plot := _plot(document.artefacts)) else "",
        divergences({each.name: each.divergence for each in document.artefacts}, as_markdown=True),
        *(text for each in document.artefacts for text in _one_markdown(each)),
        "## Protocol",
        escaped(_reference(document)),
        ""
        if isinstance(document.protocol, UnsetType)
        else escaped(protocol_lines(document.protocol, document.baseline)),
    )


def _plot(artefacts: list[s.ArtefactPart]) -> str:
    """KL over size of those that were scored, the best first."""
    points = [
        Point(each.name, each.bytes, each.kl)
        for each in artefacts
        if not isinstance(each.kl, UnsetType) and each.kl is not None
    ]
    return scatter(sorted(points, key=lambda each: each.kl))


def _heading(document: s.CompareDocument) -> str:
    if isinstance(document.reference, UnsetType):
        return "Finished checkpoints"
    return f"{escaped(printable(document.reference.name))}: finished checkpoints"


def _reference(document: s.CompareDocument) -> str:
    if isinstance(document.reference, UnsetType):
        said = "no original: what the files alone show"
    else:
        said = about(document.reference)
    if isinstance(document.logits, UnsetType):
        return said
    return f"{said}\nreference of scores: the probabilities in {printable(document.logits)}"


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


def _side_by_side(artefacts: list[s.ArtefactPart]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows; where nothing was scored, without columns of scores."""
    rows = _rows(artefacts)
    if any(any(row[STORED:]) for row in rows):
        return HEADINGS, rows
    return HEADINGS[:STORED], [row[:STORED] for row in rows]


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
    roundings: dict[str, int] = {}
    for each in artefact.layers:
        if not isinstance(each.rounding, UnsetType):
            roundings[each.rounding] = roundings.get(each.rounding, 0) + 1
    if not roundings:
        quantised = sum(not isinstance(each.stored, UnsetType) for each in artefact.layers)
        layers = counted(len(artefact.layers), "layer")
        if not quantised:
            return f"{layers}, none with codes: only its original tells what was changed"
        return f"{layers}, of {quantised} the codes were looked at"
    said = {
        "same": "as in the original",
        "nearest": "rounded to nearest",
        "solved": "solved",
        "other": "from other weights",
    }
    told = ", ".join(
        f"{roundings[kind]} {words}" for kind, words in said.items() if kind in roundings
    )
    folded = sum((each.folded or 1.0) > 1 for each in artefact.layers)
    told += f"; scales of input channels folded into {folded}" if folded else ""
    turned = sum(not isinstance(each.rotated, UnsetType) for each in artefact.layers)
    told += f"; {turned} rotated" if turned else ""
    return told + _scaled(artefact.layers)


def _scaled(layers: list[s.ComparedLayer]) -> str:
    """By which numbers scales follow from the largest weights."""
    by_number: dict[float, int] = {}
    for each in layers:
        if not isinstance(each.divisor, UnsetType) and each.divisor is not None:
            by_number[each.divisor] = by_number.get(each.divisor, 0) + 1
    said = ", ".join(f"{number:g} in {count}" for number, count in by_number.items())
    return f"; scales are the largest weight or range over {said}" if said else ""


def _worst(artefact: s.ArtefactPart) -> str:
    headings, rows = _worst_rows(artefact)
    if not rows:
        return ""
    more = sum(map(_listed, artefact.layers)) - len(rows)
    note = f"\n… and {more} more; --json has all" if more > 0 else ""
    return table(headings, rows, {0, 1, 4, 7} if "clipped" in headings else {0, 1, 4}) + note


def _worst_rows(artefact: s.ArtefactPart) -> tuple[list[str], list[list[str]]]:
    """The layers that cost most: by what giving them back wins, else by their errors."""

    def order(each: s.ComparedLayer) -> tuple[float, float]:
        win = each.sensitivity
        measured = float("-inf") if isinstance(win, UnsetType) or win.kl is None else win.kl
        return -measured, 0.0 if isinstance(each.errors, UnsetType) else -(
            each.errors.relative or 0.0
        )

    layers = [each for each in artefact.layers if _listed(each)]
    if all(isinstance(each.errors, UnsetType) for each in layers):
        return _alone(layers)
    any_clipped = any(not isinstance(each.clipping, UnsetType) for each in layers)
    any_win = any(not isinstance(each.sensitivity, UnsetType) for each in layers)
    rows = []
    for each in sorted(layers, key=order)[:WORST]:
        win = None if isinstance(each.sensitivity, UnsetType) else each.sensitivity
        rows.append(
            [
                each.name,
                each.format,
                figure(each.bits, 2),
                "" if isinstance(each.errors, UnsetType) else share(each.errors.relative),
                each.rounding or "",
                figure(each.steps or None, 2) if evenly_spaced(each.format) else "-",
                *(_clipped(each.clipping) if any_clipped else []),
                *([_thousandth(None if win is None else win.kl)] if any_win else []),
            ]
        )
    headings = ["layer", "stored as", "bits", "error", "rounding", "in steps"]
    if any_clipped:
        headings += ["clipped", "at most"]
    if any_win:
        headings.append("given back: KL·10³")
    return headings, rows


def _clipped(clipping: s.ClippedPart | UnsetType) -> list[str]:
    """The share of a layer that is clipped, and the channel that is clipped most."""
    if isinstance(clipping, UnsetType):
        return ["", ""]
    if not clipping.share:
        return [share(0.0), ""]
    by_input, by_output = clipping.input_share or 0.0, clipping.output_share or 0.0
    if by_input >= by_output:
        return [share(clipping.share), f"{share(by_input)} of input {clipping.input_channel}"]
    return [share(clipping.share), f"{share(by_output)} of output {clipping.output_channel}"]


def _listed(layer: s.ComparedLayer) -> bool:
    """Whether a layer is one of those that are listed: changed, or stored quantised."""
    if isinstance(layer.rounding, UnsetType):
        return not isinstance(layer.stored, UnsetType)
    return layer.rounding != "same"


def _alone(layers: list[s.ComparedLayer]) -> tuple[list[str], list[list[str]]]:
    """Layers by themselves, those with most codes unused or saturated first."""

    def order(each: s.ComparedLayer) -> tuple[float, float]:
        codes = each.stored
        if isinstance(codes, UnsetType):
            return 0.0, 0.0
        return -(codes.unused or 0) / (codes.levels or 1), -(codes.saturated or 0.0)

    rows = []
    for each in sorted(layers, key=order)[:WORST]:
        codes = each.stored
        assert not isinstance(codes, UnsetType)
        zeros = isinstance(codes.zero_min, UnsetType)
        rows.append(
            [
                each.name,
                each.format,
                figure(each.bits, 2),
                "" if isinstance(codes.unused, UnsetType) else f"{codes.unused} of {codes.levels}",
                "" if isinstance(codes.saturated, UnsetType) else share(codes.saturated),
                f"{_short(codes.scale_min)} to {_short(codes.scale_max)}",
                "" if zeros else f"{codes.zero_min} to {codes.zero_max}",
            ]
        )
    headings = ["layer", "stored as", "bits", "unused", "saturated", "scales", "zero points"]
    return (headings, rows) if rows else ([], [])


def _short(value: s.Number) -> str:
    return "?" if value is None else f"{value:.3g}"


def _thousandth(value: s.Number | UnsetType) -> str:
    if isinstance(value, UnsetType) or value is None:
        return ""
    return figure(1000 * value, 2)
