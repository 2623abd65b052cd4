"""A finished checkpoint beside its original: its layers, by the original's names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from engine import protocol as p
from engine.checkpoint import Checkpoint, DiskLayer, list_layers, open_checkpoint, read_layer
from engine.checkpoint.checkpoint import open_stored
from engine.checkpoint.companions import layouts_of
from engine.checkpoint.layers import setting
from engine.checkpoint.packed.declared import declared_config
from engine.checkpoint.weight import QuantisedWeight
from engine.demo import DEMO_PATH
from engine.errors import CheckpointError
from engine.measure.compare.arranged import Arrange, arrangement
from engine.measure.compare.declarations import contradictions, number_of
from engine.measure.compare.matching import Within, joined, within
from engine.measure.compare.readings import settled
from engine.measure.compare.rotations import Stream, Turn, stream_of
from engine.measure.compare.stored import stored_bits
from engine.model.source import resolve_model
from engine.session import own_format
from engine.session.artefact import OUTSIDE
from engine.workspace import Opened

ROWS = 64
"""Rows that are read in each of several ways."""
FITS = 0.7
"""Another reading is right if it leaves less than this of the error: off by one step, it is a third
of it."""
_HEADS = {
    "q_proj": ("num_attention_heads", "n_head"),
    "k_proj": ("num_key_value_heads", "num_attention_heads"),
}


@dataclass(eq=False)
class Artefact:
    """The files of a finished checkpoint."""

    checkpoint: Checkpoint
    rows: dict[str, DiskLayer]
    """Its layers by name; also those of the original that it has fused, or split."""
    original: Opened
    listed: dict[str, DiskLayer] = field(default_factory=dict)
    """Its layers as it has them."""
    _within: dict[str, Within] = field(default_factory=dict)
    turns: dict[str, Turn | None] = field(default_factory=dict)
    """Rotations of its layers, as far as they are known and small."""
    _settled: set[str] = field(default_factory=set)
    """Layers that are read in the way that fits the original."""

    @cached_property
    def shared(self) -> list[DiskLayer]:
        """Rows of the original that it has too, in the same shape."""
        return [row for row in self.original.rows.values() if self._why_not(row) is None]

    @cached_property
    def unmatched(self) -> dict[str, str]:
        """The original's layers that it has not, with the reason."""
        found = {row.name: self._why_not(row) for row in self.original.rows.values()}
        return {name: why for name, why in found.items() if why is not None}

    def _why_not(self, row: DiskLayer) -> str | None:
        mine = self.rows.get(row.name)
        if mine is None:
            return "it has no layer of this name"
        if mine.shape != row.shape and not _is_padded(mine, row):
            return f"it is {list(mine.shape)} there and {list(row.shape)} in the original"
        return None

    def read(self, layer: str) -> Tensor:
        """The weight that a layer dequantises to, ``[out, in]`` or ``[experts, out, in]``.

        Of a padded vocabulary, the tokens that the original has.
        """
        height = self.original.rows[layer].shape[0]
        place = self._within.get(layer)
        if place is not None:
            return read_layer(self.checkpoint, place.whole)[place.first :][:height]
        return read_layer(self.checkpoint, self.rows[layer])[:height]

    def given_back(self, layer: str, weight: Tensor) -> Tensor:
        """A weight of the original's shape in that of this checkpoint, padded as it is here."""
        if weight.shape == self.rows[layer].shape:
            return weight
        padding = read_layer(self.checkpoint, self.rows[layer])[len(weight) :]
        return torch.cat([weight, padding.to(weight.device, weight.dtype)])

    def settle(self, layer: str, weight: Tensor) -> None:
        """Read a layer in the way that fits the original, where there are several.

        Args:
            layer: one that both have.
            weight: the original's, ``[out, in]`` or ``[experts, out, in]``.
        """
        if layer in self._settled:
            return
        self._settled.add(layer)
        rows = weight.reshape(-1, weight.shape[-1])
        heads = self.heads(layer) if weight.dim() == 2 else 0
        for stored, first in self.quantised(layer):
            some = rows[first : first + min(ROWS, stored.height)].double()
            if stored.otherwise:
                self._settle(stored, some)
            if not self.checkpoint.quantised[stored.name].read_as:
                self._settle_mistake(stored, some, heads)

    def _settle_mistake(self, stored: QuantisedWeight, rows: Tensor, heads: int) -> None:
        """Read a weight otherwise where it was stored by mistake, and that fits the original."""
        found = settled(stored, rows, heads, self._whole_scale(stored))
        if found is not None:
            why = f"{found.read_as}: that fits the original"
            self.checkpoint.quantised[stored.name] = replace(found, read_as=why)

    def _whole_scale(self, stored: QuantisedWeight) -> float | None:
        """The one number that scales a whole weight, if there is one."""
        for name in stored.pieces:
            if name.endswith((".weight_global_scale", ".weight_scale_2")):
                return number_of(self._as_stored, name)
        return None

    @cached_property
    def _as_stored(self) -> Checkpoint:
        """Its tensors as they are in the files."""
        checkpoint = self.checkpoint
        return open_stored(checkpoint.folder, follow_links=checkpoint.follow_links)

    def _settle(self, stored: QuantisedWeight, rows: Tensor) -> None:
        """Read a weight in the way that fits its first rows in the original."""

        def apart(reading: QuantisedWeight) -> float:
            found = reading.load().rows(0, len(rows)).double()
            return float((found - rows).norm())

        own = apart(stored)
        best = min(stored.otherwise, key=apart)
        if apart(best) < FITS * own:
            why = f"{best.read_as}: that fits the original"
            self.checkpoint.quantised[stored.name] = replace(best, read_as=why)

    def settle_all(self) -> None:
        """Settle how every layer is read that is stored quantised."""
        for row in self.shared:
            if row.name not in self._settled and self.quantised(row.name):
                self.settle(row.name, read_layer(self.original.checkpoint, row))

    def quantised(self, layer: str) -> list[tuple[QuantisedWeight, int]]:
        """The weights of a layer that are stored quantised, with the first row of each.

        Experts that are stored one by one lie one below the other.
        """
        row, first = self.rows[layer], 0
        if layer in self._within:  # rows of a fused weight are read as it declares them
            return []
        found: list[tuple[QuantisedWeight, int]] = []
        for part in () if row.transposed else row.parts:
            stored = self.checkpoint.quantised.get(part)
            if stored is not None:
                found.append((stored, first))
            first += prod(self.checkpoint.tensors[part].shape[:-1])
        return found

    def arrangement(self, layer: str) -> Arrange:
        """How to bring the groups of a layer into rows, to look at its grid."""
        stored = [each for each, _ in self.quantised(layer)]
        if len(stored) != 1:  # experts one by one lie as plain ones do
            return lambda weight: weight
        return arrangement(stored[0], lambda: self._as_stored)

    def holds(self, layer: str) -> str:
        """What a layer is stored as: a format where it is one of ours, else a layout or dtype."""
        return own_format(self.rows[layer].dtype)

    def is_plain(self, layer: str) -> bool:
        """Whether a layer is stored as floating-point numbers of 16 bits or more."""
        row = self.rows[layer]
        return not row.reader and row.dtype in ("float16", "bfloat16", "float32", "float64")

    def bits(self, layer: str) -> float:
        """Stored bits a weight of a layer, with all that is stored to dequantise it."""
        row = self.rows[layer]
        return stored_bits(row) / row.parameters

    def reading(self, layer: str) -> tuple[str, str]:
        """What the configuration declares a layer as, and what it is read as; empty if the same."""
        for part in self.rows[layer].parts:
            weight = self.checkpoint.quantised.get(part)
            if weight is not None and weight.read_as:
                return weight.declared, weight.read_as
        return "", ""

    def heads(self, layer: str) -> int:
        """Heads of the rows of queries or keys, as the original's config has them; else 0."""
        return self._number(_HEADS.get(self.original.rows[layer].kind, ()))

    @property
    def key_heads(self) -> int:
        """Heads of keys and values, as the original's config has them; 0 if it does not say."""
        return self._number(_HEADS["k_proj"])

    @property
    def query_heads(self) -> int:
        """Heads of queries, as the original's config has them; 0 if it does not say."""
        return self._number(_HEADS["q_proj"])

    @cached_property
    def stream(self) -> Stream | None:
        """The rotation of the residual stream, which the embedding tells; None if there is none."""
        row = next((row for row in self.shared if row.role == "embedding"), None)
        if row is None:
            return None
        return stream_of(read_layer(self.original.checkpoint, row), self.read(row.name))

    def _number(self, named: tuple[str, ...]) -> int:
        found = setting(self.original.checkpoint.config, *named)
        return found if isinstance(found, int) and found > 0 else 0

    def opened(self) -> p.ArtefactOpened:
        """What its headers say."""
        return opened_alone(self.checkpoint, self.listed.values(), tuple(self.unmatched))


def open_finished(source: str, *, follow_links: bool) -> tuple[Checkpoint, dict[str, DiskLayer]]:
    """A finished checkpoint and its layers by name.

    Args:
        source: a folder, a GGUF file, a hub id, or ``demo``.
        follow_links: whether its files may be links out of it.

    Raises:
        CheckpointError: it cannot be read.
    """
    folder = DEMO_PATH if source == "demo" else resolve_model(source)
    checkpoint = open_checkpoint(folder, follow_links=follow_links)
    return checkpoint, {row.name: row for row in list_layers(checkpoint)}


def open_artefact(source: str, original: Opened) -> Artefact:
    """Read the headers of a finished checkpoint.

    Args:
        source: a folder, a GGUF file, a hub id, or ``demo``.
        original: the checkpoint it is compared with.

    Raises:
        CheckpointError: it cannot be read, or shares no layer of a block with the original.
    """
    checkpoint, rows = open_finished(source, follow_links=original.settings.follow_links)
    places = dict(within(rows, original.rows))
    also = {row.name: row for row in (*joined(rows, original.rows), *places)}
    inside = {row.name: place for row, place in places.items()}
    found = Artefact(checkpoint, rows | also, original, rows, inside)
    if all(row.block is None for row in found.shared):
        layers = original.rows.values()
        first = next(row.name for row in layers if row.block is not None)
        why = found.unmatched[first]
        raise CheckpointError(
            f"{source} shares no layer of a block with the original: {first}: {why}; "
            "give checkpoints of the same model"
        )
    return found


def opened_alone(
    checkpoint: Checkpoint, rows: Iterable[DiskLayer], unmatched: tuple[str, ...] = ()
) -> p.ArtefactOpened:
    """What the headers of a finished checkpoint say.

    Args:
        checkpoint: the finished one.
        rows: its layers.
        unmatched: layers of an original that it has not.
    """
    layers = list(rows)
    layouts = layouts_of(checkpoint)
    return p.ArtefactOpened(
        fingerprint=checkpoint.fingerprint,
        name=checkpoint.name,
        path=str(checkpoint.folder),
        layout=" and ".join(layouts) or checkpoint.dtype,
        declared=declared(declared_config(checkpoint)),
        bytes=checkpoint.bytes,
        bits_per_weight=_per_weight(layers, body=True),
        bits_all=_per_weight(layers, body=False),
        unmatched=unmatched,
        contradictions=contradictions(checkpoint, layers),
        version=p.COMPARISON_VERSION,
    )


def _per_weight(layers: Iterable[DiskLayer], *, body: bool) -> float:
    """Stored bits a weight, of the body or of all layers; one tensor counts once."""
    rows = {row.parts: row for row in layers if not body or row.role not in OUTSIDE}.values()
    return sum(map(stored_bits, rows)) / max(1, sum(row.parameters for row in rows))


def declared(config: dict[str, object]) -> dict[str, str | int | float | bool]:
    """The plain values of a ``quantization_config``, those of nested tables by dotted keys."""
    found: dict[str, str | int | float | bool] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": each for inner, each in declared(value).items()}
        elif isinstance(value, str | int | float | bool):
            found[str(key)] = value
    return found


def _is_padded(mine: DiskLayer, row: DiskLayer) -> bool:
    """Whether a layer is the original's with more tokens."""
    return row.role in OUTSIDE and mine.shape[1:] == row.shape[1:] and mine.shape[0] > row.shape[0]
