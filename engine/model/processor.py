"""What the processor is good at."""

from __future__ import annotations

import torch


def has_matrix_units() -> bool:
    """Whether this processor multiplies bfloat16 matrices faster than float32 ones (AMX)."""
    found = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(found is not None and found())
