"""Integer ``P.weight``: one code per byte, or several. Recognised, not read.

Used by bitsandbytes and compressed-tensors 8-bit, ModelOpt, MLX and BitNet.
"""

from __future__ import annotations

from engine.checkpoint.quantised.reader import Reader

READER = Reader(
    name="integers",
    recognises=lambda _, tensor: (
        "int" in tensor.dtype and len(tensor.shape) > 1 and tensor.name.endswith(".weight")
    ),
)
