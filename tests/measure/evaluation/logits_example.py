"""Logits of two models on the same tokens, as llama.cpp's functions were given them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
CONTEXT, VOCABULARY, CHUNKS = 66, 37, 5
COUNTED = CONTEXT - 1 - CONTEXT // 2
WRITTEN = Path(__file__).parent / "written"


def example() -> tuple[Array, Array, Array]:
    """Tokens ``[chunks, context]``, and logits ``[chunks, counted, vocabulary]`` of both.

    Some are more than 16 nats below the first, and one row has equal logits.
    """
    draw = np.random.RandomState(7)  # its stream is frozen
    tokens = draw.randint(0, VOCABULARY, (CHUNKS, CONTEXT)).astype("<i4")
    base = draw.standard_normal((CHUNKS, COUNTED, VOCABULARY)) * 5
    other = base + draw.standard_normal(base.shape) * 0.4
    base[1, 2] = 0.25
    return tokens, base.astype("<f4"), other.astype("<f4")
