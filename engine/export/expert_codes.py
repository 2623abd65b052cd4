"""Parts of stored forms: one expert of a layer, and some rows of a weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from engine.export.writer import Codes
from engine.quant.methods.gptq import Solved
from engine.quant.stored import StoredWeight


def expert_of(codes: Codes, expert: int) -> StoredWeight:
    """The stored form of one expert, of that of all ``[experts, out, in]``."""
    form = codes.stored if isinstance(codes, Solved) else codes
    return _replaced(form, lambda tensor: tensor[expert])


def rows_of(form: StoredWeight, lines: slice) -> StoredWeight:
    """Some rows of a weight ``[out, in]``; a scale of the whole belongs to all of them."""
    return _replaced(form, lambda tensor: tensor[lines] if tensor.shape[0] > 1 else tensor)


def _replaced(form: StoredWeight, change: Callable[[Tensor], Tensor]) -> StoredWeight:
    of: Any = form
    changed = {
        field.name: change(value)
        for field in dataclasses.fields(of)
        if isinstance(value := getattr(of, field.name), Tensor)
    }
    found: StoredWeight = dataclasses.replace(of, **changed)
    return found
