"""What the job ``imatrix`` returns."""

from __future__ import annotations

import msgspec


class ImatrixWritten(msgspec.Struct, frozen=True, kw_only=True):
    """An importance matrix that was written."""

    file: str
    bytes: int
    weights: int
    """Weights of llama.cpp that it has an importance for."""
    left: dict[str, str]
    """Layers that it leaves out, with the reason."""
