"""Codes and scales out of blocks of ggml, for how they are used: their order in a block is left.

Source: gguf 0.19.0, ``quants.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.checkpoint.weight import Codes
from engine.ggml_types import QUANTISED

if TYPE_CHECKING:
    from torch import Tensor

_SCALES = {
    "q4_0": 0, "q4_1": 0, "q5_0": 0, "q5_1": 0, "q8_0": 0, "q2_k": 80, "q3_k": 108, "q4_k": 0,
    "q5_k": 0, "q6_k": 208, "iq4_nl": 0, "iq4_xs": 0, "iq2_xxs": 0, "iq2_xs": 0, "iq2_s": 0,
    "iq3_xxs": 0, "iq3_s": 0, "iq1_s": 0, "tq1_0": 52, "tq2_0": 64,
}  # fmt: skip
"""Where a block has the scale of its codes, in float16."""


def codes_of(type: str, rows: Tensor) -> Codes | None:
    """The codes of some rows and the scales of their blocks; None for types that are not known.

    Args:
        type: the name of a quantised type: ``q4_k``.
        rows: uint8 ``[rows, bytes of a row]``.
    """
    import torch

    size = QUANTISED[type].bytes
    blocks = rows.reshape(-1, size)
    if type == "mxfp4":
        from engine.checkpoint.packed.floats import powers_of_two

        return Codes(_nibbles(blocks[:, 1:]), 16, powers_of_two(blocks[:, 0]) / 2)
    if type not in _SCALES:
        return None
    at = _SCALES[type]
    scales = blocks[:, at : at + 2].contiguous().view(torch.float16).to(torch.float32)
    found = _CODES.get(type)
    levels, codes = found(blocks) if found is not None else (0, blocks[:0])
    return Codes(codes, levels, scales)


def _nibbles(some: Tensor) -> Tensor:
    import torch

    return torch.cat([some & 15, some >> 4], dim=1)


def _with_bits(nibbles: Tensor, bits: Tensor) -> Tensor:
    """Nibbles of 32 weights with a fifth bit each, out of four bytes."""
    import torch

    places = torch.arange(8, dtype=torch.uint8)
    return nibbles | (((bits[..., None] >> places) & 1).flatten(1) << 4)


def _q2_k(blocks: Tensor) -> tuple[int, Tensor]:
    return 4, _of_two_bits(blocks[:, 16:80])


def _q3_k(blocks: Tensor) -> tuple[int, Tensor]:
    import torch

    high, low = blocks[:, :32], blocks[:, 32:96].reshape(-1, 2, 32)
    return 8, torch.cat(
        [
            ((low[:, half] >> (2 * part)) & 3) | (((high >> (4 * half + part)) & 1) << 2)
            for half in range(2)
            for part in range(4)
        ],
        dim=1,
    )


def _q5_k(blocks: Tensor) -> tuple[int, Tensor]:
    import torch

    high, low = blocks[:, 16:48], blocks[:, 48:176].reshape(-1, 4, 32)
    parts = []
    for part in range(4):
        for half, some in enumerate((low[:, part] & 15, low[:, part] >> 4)):
            parts.append(some | (((high >> (2 * part + half)) & 1) << 4))
    return 32, torch.cat(parts, dim=1)


def _q6_k(blocks: Tensor) -> tuple[int, Tensor]:
    import torch

    low, high = blocks[:, :128].reshape(-1, 2, 2, 32), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    first = (low & 15) | (torch.cat([high & 3, (high >> 2) & 3], dim=2) << 4)
    second = (low >> 4) | (torch.cat([(high >> 4) & 3, (high >> 6) & 3], dim=2) << 4)
    return 64, torch.cat([first.flatten(1), second.flatten(1)], dim=1)


_CODES: dict[str, Callable[[Tensor], tuple[int, Tensor]]] = {
    "q4_0": lambda blocks: (16, _nibbles(blocks[:, 2:])),
    "q4_1": lambda blocks: (16, _nibbles(blocks[:, 4:])),
    "q5_0": lambda blocks: (32, _with_bits(_nibbles(blocks[:, 6:]), blocks[:, 2:6])),
    "q5_1": lambda blocks: (32, _with_bits(_nibbles(blocks[:, 8:]), blocks[:, 4:8])),
    "q8_0": lambda blocks: (256, blocks[:, 2:] ^ 128),
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q4_k": lambda blocks: (16, _nibbles(blocks[:, 16:])),
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    "iq4_nl": lambda blocks: (16, _nibbles(blocks[:, 2:])),
    "iq4_xs": lambda blocks: (16, _nibbles(blocks[:, 8:])),
    "tq2_0": lambda blocks: (4, _of_two_bits(blocks[:, :64])),
}


def _of_two_bits(some: Tensor) -> Tensor:
    import torch

    return torch.cat([(some >> shift) & 3 for shift in (0, 2, 4, 6)], dim=1)
