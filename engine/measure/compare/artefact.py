"""A finished checkpoint beside its original: its layers, by the original's names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from engine import protocol as p
from engine.checkpoint import Checkpoint, DiskLayer, list_layers, open_checkpoint, read_layer
from engine.checkpoint.companions import layouts_of
from engine.checkpoint.packed.declared import declared_config
from engine.checkpoint.weight import QuantisedWeight
from engine.demo import DEMO_PATH
from engine.errors import CheckpointError
from engine.model.source import resolve_model
from engine.session import own_format
from engine.session.artefact import OUTSIDE, bits_as_stored
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
    """Its layers by name."""
    original: Opened

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
        return read_layer(self.checkpoint, self.rows[layer])[: self.original.rows[layer].shape[0]]

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
        rows = weight.reshape(-1, weight.shape[-1])
        for stored, first in self._ambiguous(layer):
            self._settle(stored, rows[first : first + min(ROWS, stored.height)].double())

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
        """Settle how every layer is read that can be read in several ways."""
        for row in self.shared:
            if self._ambiguous(row.name):
                self.settle(row.name, read_layer(self.original.checkpoint, row))

    def _ambiguous(self, layer: str) -> list[tuple[QuantisedWeight, int]]:
        """The weights of a layer that can be read in several ways, with the first row of each.

        Experts that are stored one by one lie one below the other.
        """
        row, first = self.rows[layer], 0
        found: list[tuple[QuantisedWeight, int]] = []
        for part in () if row.transposed else row.parts:
            stored = self.checkpoint.quantised.get(part)
            if stored is not None and stored.otherwise:
                found.append((stored, first))
            first += prod(self.checkpoint.tensors[part].shape[:-1])
        return found

    def holds(self, layer: str) -> str:
        """What a layer is stored as: a format where it is one of ours, else a layout or dtype."""
        return own_format(self.rows[layer].dtype)

    def bits(self, layer: str) -> float:
        """Stored bits a weight of a layer, with all that is stored to dequantise it."""
        row = self.rows[layer]
        return _bits(row) / row.parameters

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

    def _number(self, named: tuple[str, ...]) -> int:
        config = self.original.checkpoint.config
        text = config.get("text_config")
        for table in (config, text if isinstance(text, dict) else {}):
            for name in named:
                if isinstance(table.get(name), int) and table[name] > 0:
                    return int(table[name])
        return 0

    def per_weight(self, *, body: bool) -> float:
        """Stored bits a weight, of the body or of all layers; one tensor counts once."""
        rows = {
            row.parts: row for row in self.rows.values() if not body or row.role not in OUTSIDE
        }.values()
        return sum(map(_bits, rows)) / max(1, sum(row.parameters for row in rows))

    def opened(self) -> p.ArtefactOpened:
        """What its headers say."""
        layouts = layouts_of(self.checkpoint)
        return p.ArtefactOpened(
            fingerprint=self.checkpoint.fingerprint,
            name=self.checkpoint.name,
            path=str(self.checkpoint.folder),
            layout=" and ".join(layouts) or self.checkpoint.dtype,
            declared=declared(declared_config(self.checkpoint)),
            bytes=self.checkpoint.bytes,
            bits_per_weight=self.per_weight(body=True),
            bits_all=self.per_weight(body=False),
            unmatched=tuple(self.unmatched),
        )


def open_artefact(source: str, original: Opened) -> Artefact:
    """Read the headers of a finished checkpoint.

    Args:
        source: a folder, a GGUF file, a hub id, or ``demo``.
        original: the checkpoint it is compared with.

    Raises:
        CheckpointError: it cannot be read, or shares no layer of a block with the original.
    """
    folder = DEMO_PATH if source == "demo" else resolve_model(source)
    checkpoint = open_checkpoint(folder, follow_links=original.settings.follow_links)
    rows = {row.name: row for row in list_layers(checkpoint)}
    found = Artefact(checkpoint, rows, original)
    if all(row.block is None for row in found.shared):
        layers = original.rows.values()
        first = next(row.name for row in layers if row.block is not None)
        why = found.unmatched[first]
        raise CheckpointError(
            f"{source} shares no layer of a block with the original: {first}: {why}; "
            "give checkpoints of the same model"
        )
    return found


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


def _bits(row: DiskLayer) -> int:
    """Bits of a layer in the files."""
    return row.own_bits or bits_as_stored(row.shape, row.dtype)
