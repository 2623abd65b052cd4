"""``--to checkpoint``: a compressed-tensors folder, which transformers loads."""

from __future__ import annotations

from engine.export.compressed.expressed import why_not_expressed
from engine.export.target import Target

TARGET = Target(
    name="checkpoint",
    help="compressed-tensors, which transformers loads",
    why_not_expressed=why_not_expressed,
    writer="engine.export.compressed.writer:WRITER",
)
