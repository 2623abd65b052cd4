"""What a layer of a finished checkpoint tells by itself: codes, scales, sizes, order of groups."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from engine import protocol as p
from engine.checkpoint import Checkpoint, DiskLayer, read_layer
from engine.checkpoint.packed.declared import declared_config
from engine.checkpoint.packed.grid import Grid
from engine.checkpoint.weight import QuantisedWeight
from engine.errors import CheckpointError
from engine.measure.weights.stored import stored_codes
from engine.session import own_format
from engine.session.artefact import bits_as_stored

SIZES = 8
"""Of which groups in use are multiples."""


@dataclass
class _Sizes:
    """Sums over the weights of a layer."""

    squares: float = 0.0
    finite: int = 0
    largest: float = 0.0
    not_finite: int = 0
    zero_rows: int = 0

    def add(self, rows: Tensor) -> None:
        """Count some rows ``[rows, in]``."""
        wide = rows.float()
        usable = torch.isfinite(wide)
        bad = wide.numel() - int(usable.sum())
        if bad:
            wide = wide.where(usable, 0.0)
        self.not_finite += bad
        self.finite += wide.numel() - bad
        self.squares += float(wide.square().sum(dtype=torch.float64))
        self.largest = max(self.largest, float(wide.abs().amax()))
        self.zero_rows += int((wide == 0).all(-1).sum())


def stored_layer(checkpoint: Checkpoint, row: DiskLayer) -> p.StoredLayer:
    """Read a layer, one part at a time, a span of rows after another.

    Of a layer that is stored plain, only what the headers say.

    Args:
        checkpoint: the finished one.
        row: one of its layers.
    """
    found = p.StoredLayer(
        artefact=checkpoint.fingerprint,
        layer=row.name,
        holds=own_format(row.dtype),
        bits=stored_bits(row) / row.parameters,
        shape=row.shape,
    )
    if not _is_quantised(checkpoint, row):
        return found
    try:
        return _looked_at(checkpoint, row, found)
    except CheckpointError as error:
        return msgspec.structs.replace(found, refused=str(error))


def stored_bits(row: DiskLayer) -> int:
    """Bits of a layer in the files, with all that is stored to dequantise it."""
    return row.own_bits or bits_as_stored(row.shape, row.dtype)


def _looked_at(checkpoint: Checkpoint, row: DiskLayer, found: p.StoredLayer) -> p.StoredLayer:
    sizes, uneven, unordered = _Sizes(), 0, False
    declared_order = _declares_order(checkpoint)
    for rows in _rows(checkpoint, row):
        sizes.add(rows)
    for weight in _parts(checkpoint, row):
        loaded = weight.load()
        if isinstance(loaded, Grid) and loaded.index is not None:
            uneven += _uneven(loaded.index, loaded.scales.shape[-1])
            unordered |= declared_order and bool((loaded.index.diff() < 0).any())
    return msgspec.structs.replace(
        found,
        codes=stored_codes(checkpoint, row),
        rms=math.sqrt(sizes.squares / sizes.finite) if sizes.finite else math.nan,
        largest=sizes.largest,
        not_finite=sizes.not_finite,
        zero_rows=sizes.zero_rows,
        groups_uneven=uneven,
        groups_unordered=unordered,
    )


def _is_quantised(checkpoint: Checkpoint, row: DiskLayer) -> bool:
    quantised = any(part in checkpoint.quantised for part in row.parts)
    plain = ("float16", "bfloat16", "float32", "float64")
    return quantised or bool(row.reader) or row.dtype not in plain


def _parts(checkpoint: Checkpoint, row: DiskLayer) -> list[QuantisedWeight]:
    return [checkpoint.quantised[part] for part in row.parts if part in checkpoint.quantised]


def _rows(checkpoint: Checkpoint, row: DiskLayer) -> Iterator[Tensor]:
    """The weights of a layer, some rows at a time where its layout can."""
    weights = _parts(checkpoint, row)
    if len(weights) < len(row.parts):
        whole = read_layer(checkpoint, row)
        yield from torch.split(whole.reshape(-1, whole.shape[-1]), 4096)
        return
    for weight in weights:
        loaded = weight.load()
        for first, last in weight.spans():
            yield loaded.rows(first, last)


def _declares_order(checkpoint: Checkpoint) -> bool:
    """Whether the config says that groups are of neighbours."""
    return declared_config(checkpoint).get("desc_act") is False


def _uneven(index: Tensor, groups: int) -> int:
    """Groups whose inputs are not as many as the others'; the last may have fewer."""
    counts = index.bincount(minlength=groups)
    size = int(counts.max())
    expected = torch.full_like(counts, size)
    rest = len(index) - size * (groups - 1)
    if 0 < rest < size and size % SIZES == 0:  # the last group, which need not be full
        expected[-1] = rest
    return int((counts.sort().values != expected.sort().values).sum())
