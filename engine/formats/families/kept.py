"""``fp32``, ``fp16`` and ``bf16``: weights that are cast, not quantised."""

from __future__ import annotations

from engine.formats.catalogue import Base
from engine.formats.family import Family

FAMILY = Family(
    name="kept",
    formats={
        "fp32": Base(32, kept=True),
        "fp16": Base(16, kept=True),
        "bf16": Base(16, kept=True),
    },
    stored_bits=lambda fmt, out, row: fmt.bits * out * row,
    arithmetic="engine.quant.kept:ARITHMETIC",
    place=0,
)
