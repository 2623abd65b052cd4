"""Errors of a recipe inside the model as tables: outputs of layers, drift of blocks."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from engine.report import schema as s
from engine.report.characters import printable
from engine.report.tables.cells import NOT_KNOWN, figure, share
from engine.report.tables.layout import paragraphs, table

OUTPUT_HEADINGS = ("layer", "format", "output error", "channels", ">10%", ">50%", "worst")
DRIFT_HEADINGS = ("block", "drift", "injected", "propagated", "control", "worst head", "KL")
LISTED = 10
"""Layers with the largest output errors that are listed."""


def errors_text(document: s.DiagnoseDocument) -> str:
    """Both tables; empty if nothing was measured."""
    if isinstance(document.errors, UnsetType):
        return ""
    return paragraphs(
        table(OUTPUT_HEADINGS, output_rows(document), {0, 1}),
        table(DRIFT_HEADINGS, drift_rows(document), set()),
        "\n".join(remarks(document.errors)),
    ).rstrip()


def output_rows(document: s.DiagnoseDocument) -> list[Sequence[str]]:
    """The layers whose outputs err most."""
    recipe = {} if isinstance(document.errors, UnsetType) else document.errors.recipe
    known = [
        (layer.name, layer.clipping)
        for layer in document.layers
        if not isinstance(layer.clipping, UnsetType)
    ]
    known.sort(key=lambda each: -(each[1].relative or 0.0))
    return [
        [
            printable(name),
            printable(recipe.get(name, "")),
            share(found.relative),
            f"{found.channels:,}",
            f"{found.over_10:,}",
            f"{found.over_50:,}",
            _worst(found),
        ]
        for name, found in known[:LISTED]
    ]


def _worst(found: s.ClippingPart) -> str:
    """The worst channel by number, with its error."""
    if not found.worst_channels:
        return NOT_KNOWN
    where = str(found.worst_channels[0])
    if not isinstance(found.worst_experts, UnsetType):
        where = f"{found.worst_experts[0]}:{where}"
    error = "above all" if found.worst_error is None else share(found.worst_error)
    return f"{where} {error}"


def drift_rows(document: s.DiagnoseDocument) -> list[Sequence[str]]:
    """Every block."""
    blocks = [] if isinstance(document.drift, UnsetType) else document.drift
    return [
        [
            str(each.block),
            share(each.drift),
            _share(each.injected),
            _share(each.propagated),
            _share(each.control),
            *_head(each),
        ]
        for each in blocks
    ]


def _head(block: s.DriftPart) -> tuple[str, str]:
    """The head whose attention diverges most, and its KL."""
    kl = [] if isinstance(block.attention, UnsetType) else block.attention
    known = [(value, head) for head, value in enumerate(kl) if value is not None]
    if not known:
        return NOT_KNOWN, NOT_KNOWN
    value, head = max(known, key=lambda each: each[0])
    return str(head), figure(value, 3)


def remarks(errors: s.ErrorsPart) -> list[str]:
    """What the figures are, and what was not measured."""
    said = [
        f"drift: relative change of a block's output over {errors.tokens:,} tokens; injected: by "
        "this block alone; propagated: what came in, passed on; control: random noise of the same "
        "norm, passed on; KL: of the attention of the worst head, nats"
    ]
    for reason in (errors.not_split, errors.no_attention):
        if not isinstance(reason, UnsetType):
            said.append(printable(reason))
    if errors.not_measured is not UNSET:
        said.append(f"outputs of {len(errors.not_measured)} layers were not compared: see the JSON")
    return said


def _share(value: s.Number | UnsetType) -> str:
    return NOT_KNOWN if isinstance(value, UnsetType) else share(value)
