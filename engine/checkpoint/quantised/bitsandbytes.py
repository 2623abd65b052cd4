"""bitsandbytes 4-bit: ``P.weight.absmax`` and ``P.weight.quant_state.…``. Not read."""

from __future__ import annotations

import re

from engine.checkpoint.quantised.reader import Reader

_BESIDE = re.compile(r"\.weight\.(quant_state\.\w+|absmax)$")

READER = Reader(
    name="bitsandbytes",
    recognises=lambda _, tensor: (
        ".weight." in tensor.name
        and _BESIDE.search(tensor.name) is not None
        and "float" not in tensor.dtype
    ),
)
