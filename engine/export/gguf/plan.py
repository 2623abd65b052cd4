"""Plans a GGUF file: its metadata, and every tensor by llama.cpp's name, shape and type."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.checkpoint import Checkpoint, DiskLayer, list_layers
from engine.checkpoint.gguf.architectures import ROUTER, Architecture
from engine.checkpoint.gguf.checkpoint import heads_of
from engine.checkpoint.headers import TensorInfo
from engine.errors import CheckpointError, UsageError, few
from engine.export.gguf.experts import stacked
from engine.export.gguf.expressed import NAME
from engine.export.gguf.pieces import DTYPES, KEPT, STORED, Piece, Stored
from engine.export.gguf.settings import GgufKey, Settings, settings_of
from engine.export.gguf.tokens import cut_otherwise, tokens_of
from engine.export.held import nearest, refused
from engine.export.recipe_file import disk_weights
from engine.export.refusal import NotExportable
from engine.export.target import target_named
from engine.formats.grammar import Format, parse_format
from engine.model.config import read_config
from engine.model.load import load_tokenizer
from engine.model.quiet import quiet
from engine.quant.quantize import dequantized

_BUFFER = re.compile(r"(\.attn\.(masked_)?bias|inv_freq)$")
_WHOLE = re.compile(rf"^position_embd\.weight$|\.{ROUTER}\.weight$")
"""Matrices that llama.cpp takes in float32 alone."""


class Plan(NamedTuple):
    """All that the file is made of."""

    architecture: Architecture
    keys: list[GgufKey]
    pieces: list[Piece]
    quantised: dict[str, tuple[str, ...]]
    """Names of tensors in the checkpoint by layer that is quantised."""
    notes: list[str]

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(piece.bytes for piece in self.pieces)


def plan_of(
    checkpoint: Checkpoint, recipe: Mapping[str, str], stored: Stored, *, trusted: bool
) -> Plan:
    """Plan the file, before any weight is read.

    Args:
        checkpoint: to be exported; not quantised.
        recipe: formats by layer; others are kept.
        stored: returns the blocks of a layer when it is written.
        trusted: whether Python code of the checkpoint may be run.

    Raises:
        NotExportable: some layers cannot be written, or llama.cpp cannot run the model.
        UsageError: an unknown layer.
        CheckpointError: it is quantised already; a tensor or the tokenizer has no place in a file.
    """
    if checkpoint.container or checkpoint.dtype not in ("float32", "float16", "bfloat16"):
        raise CheckpointError(
            f"{checkpoint.folder} is already quantised or a GGUF file: export the checkpoint that "
            "it was made from"
        )
    rows = {row.name: row for row in list_layers(checkpoint)}
    formats = _formats(checkpoint, recipe, rows)
    with quiet():
        config = read_config(checkpoint, trust_remote_code=trusted).to_dict()
    settings = settings_of(config)
    if isinstance(settings, str):
        raise NotExportable(dict.fromkeys(recipe, settings), NAME)
    config["vocab_size"] = _rows_of_embedding(rows, config["vocab_size"])
    tokenizer = load_tokenizer(checkpoint.folder, trust_remote_code=trusted)
    tokens = tokens_of(tokenizer, config["vocab_size"])
    notes = list(settings.notes)
    if (text := cut_otherwise(tokenizer, tokens)) is not None:
        notes.append(
            f"llama.cpp cuts some texts into other tokens than the model's tokenizer, as {text!r}"
        )
    pieces = _pieces(checkpoint, settings, config, rows, formats, stored)
    quantised = {layer: rows[layer].parts for layer, fmt in formats.items() if not fmt.kept}
    return Plan(settings.architecture, [*settings.keys, *tokens], pieces, quantised, notes)


def _formats(
    checkpoint: Checkpoint, recipe: Mapping[str, str], rows: Mapping[str, DiskLayer]
) -> dict[str, Format]:
    """Formats by layer, all of which a file can hold."""
    target, weights = target_named("gguf"), disk_weights(checkpoint)
    known = {weight.name: weight for weight in weights}
    for layer in recipe:
        if layer not in known:
            raise UsageError(f"{checkpoint.name} has no layer {layer!r}")
    if found := refused(target, weights, recipe):
        given = {layer: recipe[layer] for layer in found if layer in recipe}
        near = {
            layer: nearest(target, parse_format(held), known[layer])
            for layer, held in given.items()
        }
        raise NotExportable(
            found, NAME, {layer: held for layer, held in near.items() if held != given[layer]}
        )
    return {layer: parse_format(text) for layer, text in recipe.items()}


def _rows_of_embedding(rows: Mapping[str, DiskLayer], otherwise: int) -> int:
    return next((row.shape[0] for row in rows.values() if row.role == "embedding"), otherwise)


def _pieces(
    checkpoint: Checkpoint,
    settings: Settings,
    config: Mapping[str, Any],
    rows: Mapping[str, DiskLayer],
    formats: Mapping[str, Format],
    stored: Stored,
) -> list[Piece]:
    architecture = settings.architecture
    owners = {
        row.parts[0]: row
        for row in rows.values()
        if row.role != "head" or f"{row.name}.weight" in checkpoint.tensors
    }
    tied = {
        row.parts[0]: row.name
        for row in rows.values()
        if row.role == "head" and f"{row.name}.weight" not in checkpoint.tensors
    }
    unknown: list[str] = []
    found = [
        Piece(name, (), "f32", (len(factors),), partial(torch.tensor, factors))
        for name, factors in settings.factors.items()
    ]
    mixed = stacked(checkpoint, architecture, rows.values(), formats, stored)
    found += mixed.values()
    for tensor in checkpoint.tensors.values():
        if (expert := architecture.expert_of(tensor.name)) is not None and expert[0] in mixed:
            continue
        named = architecture.gguf_name(tensor.name)
        if named is None:
            if not _BUFFER.search(tensor.name):
                unknown.append(tensor.name)
            continue
        row = owners.get(tensor.name)
        fmt = formats.get(row.name) if row is not None else None
        if fmt is None and tensor.name in tied:
            fmt = formats.get(tied[tensor.name])
        found.append(_piece(checkpoint, architecture, config, tensor, named, row, fmt, stored))
    if unknown:
        raise CheckpointError(
            f"{checkpoint.folder} holds tensors that llama.cpp's {architecture.name} has not: "
            f"{few(unknown)}"
        )
    _check_head(checkpoint, architecture, found, rows)
    return found


def _check_head(
    checkpoint: Checkpoint,
    architecture: Architecture,
    pieces: Iterable[Piece],
    rows: Mapping[str, DiskLayer],
) -> None:
    own = any(piece.name == "output.weight" for piece in pieces)
    if own and not architecture.may_untie:
        raise NotExportable(
            {
                row.name: f"llama.cpp reads the head of {architecture.name} from the embedding, "
                "and this one has a weight of its own"
                for row in rows.values()
                if row.role == "head"
            },
            NAME,
        )


def _piece(
    checkpoint: Checkpoint,
    architecture: Architecture,
    config: Mapping[str, Any],
    tensor: TensorInfo,
    named: str,
    row: DiskLayer | None,
    fmt: Format | None,
    stored: Stored,
) -> Piece:
    change = architecture.change(named)
    shape = tuple(reversed(tensor.shape)) if change == "transposed" else tensor.shape
    if len(shape) > 1 and shape[0] and change in ("query rows", "key rows"):
        assert shape[0] % (2 * heads_of(change, config)) == 0, tensor.name

    def changed(whole: Tensor) -> Tensor:
        if change == "plus one":
            return whole.to(torch.float32) + 1
        if change == "transposed":
            return whole.T
        if change in ("query rows", "key rows"):
            heads = heads_of(change, config)
            halves = whole.reshape(heads, 2, whole.shape[0] // heads // 2, *whole.shape[1:])
            return halves.transpose(1, 2).reshape(whole.shape)
        return whole

    if row is not None and fmt is not None and not fmt.kept:
        return Piece(
            named,
            (tensor.name,),
            fmt.name,
            shape,
            lambda: _blocks(changed, change, stored, row, fmt),
        )
    own: torch.dtype = getattr(torch, tensor.dtype)
    wide = len(shape) == 1 or _WHOLE.search(named) is not None or own not in STORED
    kind = "f32" if wide else STORED[own]
    if fmt is not None and not wide:
        kind = KEPT[fmt.name]

    def kept() -> Tensor:
        whole = checkpoint.read(tensor.name)
        if fmt is not None and row is not None:  # with the check that every value fits
            whole = dequantized(whole, fmt, torch.float16, row.name)
        return changed(whole).to(DTYPES[kind])

    return Piece(named, (tensor.name,), kind, shape, kept)


def _blocks(
    changed: Callable[[Tensor], Tensor],
    change: str,
    stored: Stored,
    row: DiskLayer,
    fmt: Format,
) -> Tensor:
    """Blocks of a layer ``[out, in]``, whose rows alone llama.cpp has in another order."""
    blocks = stored(row, fmt)
    return blocks if change == "transposed" else changed(blocks)
