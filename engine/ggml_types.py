"""Types of ggml that a GGUF file stores tensors in: their numbers, and how large their blocks are.

Source: ``GGMLQuantizationType`` and ``GGML_QUANT_SIZES`` of the ``gguf`` package. No library is
imported here, so that headers are read and sizes counted before any is.
"""

from __future__ import annotations

from typing import NamedTuple


class GgmlType(NamedTuple):
    """One type; its weights are stored in blocks along a row."""

    name: str
    """In small letters, as formats are named: ``q4_k``."""
    block: int
    """Weights in a block."""
    bytes: int
    """Bytes of a block."""


GGML_TYPES: dict[int, GgmlType] = {
    0: GgmlType("f32", 1, 4),
    1: GgmlType("f16", 1, 2),
    2: GgmlType("q4_0", 32, 18),
    3: GgmlType("q4_1", 32, 20),
    6: GgmlType("q5_0", 32, 22),
    7: GgmlType("q5_1", 32, 24),
    8: GgmlType("q8_0", 32, 34),
    9: GgmlType("q8_1", 32, 40),
    10: GgmlType("q2_k", 256, 84),
    11: GgmlType("q3_k", 256, 110),
    12: GgmlType("q4_k", 256, 144),
    13: GgmlType("q5_k", 256, 176),
    14: GgmlType("q6_k", 256, 210),
    15: GgmlType("q8_k", 256, 292),
    16: GgmlType("iq2_xxs", 256, 66),
    17: GgmlType("iq2_xs", 256, 74),
    18: GgmlType("iq3_xxs", 256, 98),
    19: GgmlType("iq1_s", 256, 50),
    20: GgmlType("iq4_nl", 32, 18),
    21: GgmlType("iq3_s", 256, 110),
    22: GgmlType("iq2_s", 256, 82),
    23: GgmlType("iq4_xs", 256, 136),
    24: GgmlType("i8", 1, 1),
    25: GgmlType("i16", 1, 2),
    26: GgmlType("i32", 1, 4),
    27: GgmlType("i64", 1, 8),
    28: GgmlType("f64", 1, 8),
    29: GgmlType("iq1_m", 256, 56),
    30: GgmlType("bf16", 1, 2),
    34: GgmlType("tq1_0", 256, 54),
    35: GgmlType("tq2_0", 256, 66),
    39: GgmlType("mxfp4", 32, 17),
    40: GgmlType("nvfp4", 64, 36),
    41: GgmlType("q1_0", 128, 18),
}
"""By the number that a file has for them. Numbers that are missing are of types given up."""

PLAIN: dict[str, str] = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "f64": "float64",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
}
"""Types whose blocks are single numbers, and torch's names of them."""

NUMBERS: dict[str, int] = {each.name: number for number, each in GGML_TYPES.items()}
"""The number of a type by its name."""

QUANTISED: dict[str, GgmlType] = {
    each.name: each for each in GGML_TYPES.values() if each.name not in PLAIN
}
"""Types whose blocks hold codes and scales, by name."""
