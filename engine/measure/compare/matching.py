"""Layers that one checkpoint has fused and the other split: q, k and v; gate and up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from engine.checkpoint import DiskLayer
from engine.measure.compare.stored import stored_bits

FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Kinds of split layers, in the order in which they lie one below the other."""


@dataclass(frozen=True)
class Within:
    """A layer that is some rows of another."""

    whole: DiskLayer
    first: int


def joined(rows: Mapping[str, DiskLayer], original: Mapping[str, DiskLayer]) -> Iterator[DiskLayer]:
    """Layers that the original has fused, made of those that a finished checkpoint has split.

    Args:
        rows: of the finished checkpoint, by name.
        original: of the original.
    """
    for row in original.values():
        names = _beside(row.name, FUSED.get(row.kind, ()))
        parts = [rows[name] for name in names if name in rows]
        if not parts or row.name in rows or len(parts) < len(names) or row.role != "linear":
            continue
        heights = sum(part.shape[0] for part in parts)
        widths = {part.shape[1:] for part in parts}
        if (heights, widths) != (row.shape[0], {row.shape[1:]}) or any(p.transposed for p in parts):
            continue
        yield DiskLayer(
            name=row.name,
            kind=row.kind,
            block=row.block,
            shape=row.shape,
            dtype=" and ".join(dict.fromkeys(part.dtype for part in parts)),
            parts=tuple(name for part in parts for name in part.parts),
            transposed=False,
            role=row.role,
            scales=tuple(name for part in parts for name in part.scales),
            reader=parts[0].reader,
            own_bits=sum(map(stored_bits, parts)),
        )


def within(
    rows: Mapping[str, DiskLayer], original: Mapping[str, DiskLayer]
) -> Iterator[tuple[DiskLayer, Within]]:
    """Layers that the original has split, each with where it lies in a fused one.

    Args:
        rows: of the finished checkpoint, by name.
        original: of the original.
    """
    for whole in rows.values():
        parts = [
            original[n] for n in _beside(whole.name, FUSED.get(whole.kind, ())) if n in original
        ]
        if not parts or whole.name in original or whole.role != "linear":
            continue
        if sum(part.shape[0] for part in parts) != whole.shape[0]:
            continue
        first = 0
        for part in parts:
            height = part.shape[0]
            if part.name not in rows:
                bits = stored_bits(whole) * height // whole.shape[0]
                mine = replace(
                    whole, name=part.name, kind=part.kind, shape=part.shape, own_bits=bits
                )
                yield mine, Within(whole, first)
            first += height


def _beside(name: str, kinds: tuple[str, ...]) -> list[str]:
    home = name.rpartition(".")[0]
    return [f"{home}.{kind}" for kind in kinds]
