"""``P.weight`` in integers: one byte a code, or several packed in each. Recognised, not read.

bitsandbytes and compressed-tensors in eight bits, ModelOpt, MLX and BitNet store weights so.
"""

from __future__ import annotations

from engine.checkpoint.quantised.reader import Reader

READER = Reader(
    name="integers",
    recognises=lambda _, tensor: (
        "int" in tensor.dtype and len(tensor.shape) > 1 and tensor.name.endswith(".weight")
    ),
)
