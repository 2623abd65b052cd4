"""``--to checkpoint``: a compressed-tensors folder, which transformers loads."""

from __future__ import annotations

from engine.export.compressed.expressed import why_not_expressed
from engine.export.rules import FUSED, UNTIES
from engine.export.target import Target, Weight
from engine.formats.grammar import Format


def _why_not_weight(fmt: Format, weight: Weight) -> str | None:
    if weight.role == "embedding":
        return "transformers cannot load an embedding stored as codes"
    if weight.role == "conv1d":
        return "it is a transposed Conv1D, and compressed-tensors quantises linear modules only"
    return None


TARGET = Target(
    name="checkpoint",
    help="compressed-tensors, which transformers loads",
    why_not_expressed=why_not_expressed,
    why_not_weight=_why_not_weight,
    form="compressed-tensors",
    mixed=FUSED,
    folds=True,
    unties=UNTIES,
    writer="engine.export.compressed.writer:WRITER",
)
