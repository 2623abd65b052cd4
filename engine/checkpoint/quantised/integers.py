"""Integer ``P.weight``: one code per byte, or several. Recognised, not read.

Used by bitsandbytes and compressed-tensors 8-bit, ModelOpt, MLX and BitNet.
"""

from __future__ import annotations

import re

from engine.checkpoint.quantised.reader import Reader

_WEIGHT = re.compile(r"(\.weight|\.experts\.[a-z_]+_(proj|linear))$")

READER = Reader(
    name="a quantiser of integers",
    recognises=lambda _, tensor: (
        "int" in tensor.dtype and len(tensor.shape) > 1 and _WEIGHT.search(tensor.name) is not None
    ),
)
