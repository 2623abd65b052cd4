"""``kmeans3`` and ``kmeans4``: a codebook of 16-bit values for every output channel."""

from __future__ import annotations

import math

from engine.formats.catalogue import Base, Keys, Number
from engine.formats.family import SCALE_BITS, Family
from engine.formats.grammar import Format

_KEYS: Keys = {"sparse": Number(1e-6, 50, percent=True)}
_COLUMN_BITS = 32
_COUNT_BITS = 32


def outliers_kept(fmt: Format, weights: int) -> int:
    """How many weights of a matrix ``:sparse`` keeps as outliers in addition to the codes."""
    percent = dict(fmt.options).get("sparse", 0)
    return math.floor(percent / 100 * weights + 0.5)


def _stored_bits(fmt: Format, out: int, row: int) -> int:
    """With ``:sparse`` an outlier takes 16 bits and its column 32; a row's count takes 32."""
    kept = outliers_kept(fmt, out * row)
    sparse = kept * (SCALE_BITS + _COLUMN_BITS) + _COUNT_BITS * out if kept else 0
    return fmt.bits * out * row + out * (SCALE_BITS << fmt.bits) + sparse


FAMILY = Family(
    name="kmeans",
    formats={
        "kmeans3": Base(3, "channel", symmetric=False, keys=_KEYS),
        "kmeans4": Base(4, "channel", symmetric=False, keys=_KEYS),
    },
    stored_bits=_stored_bits,
    arithmetic="engine.quant.kmeans:ARITHMETIC",
    place=50,
)
