"""A GGUF file as a checkpoint: config and names of transformers, weights dequantised when read.

What llama.cpp's converter changed is undone, and a weight is dequantised a few rows at a time: at
most one chunk of codes is in memory beside the result.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from engine.checkpoint.checkpoint import Checkpoint, file_digest
from engine.checkpoint.gguf.architectures import (
    ARCHITECTURES,
    MIXTURES,
    NOT_WEIGHTS,
    Architecture,
    architecture_named,
)
from engine.checkpoint.gguf.codes import codes_of
from engine.checkpoint.gguf.config import config_of
from engine.checkpoint.gguf.files import read_files
from engine.checkpoint.gguf.header import MAGIC, GgufHeader, GgufTensor
from engine.checkpoint.gguf.metadata import Metadata
from engine.checkpoint.gguf.sizes import check_sizes
from engine.checkpoint.gguf.tokenizer import tokenizer_of
from engine.checkpoint.headers import TensorInfo
from engine.errors import CheckpointError, few
from engine.ggml_types import PLAIN, QUANTISED
from engine.plugins import resolve

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from engine.checkpoint.weight import Codes

UNREAD = frozenset(("q8_1", "q8_k", "q1_0"))
"""Types of ggml that are stored by no one, or that the gguf package does not dequantise either."""
_CHUNK = 1 << 22
"""Bytes of codes that are dequantised at a time."""
_DECODE = "engine.quant.gguf_stored:decoded"
"""By name: arithmetic knows no checkpoints, and a model no formats."""


@dataclass(frozen=True)
class GgufCheckpoint(Checkpoint):
    """A GGUF file, or its parts, opened and checked; created by `open_gguf`.

    ``folder`` is the file itself. ``tensors`` have transformers' names and shapes; their dtypes are
    those of torch, or the names of types of ggml.
    """

    architecture: Architecture = field(default=ARCHITECTURES["llama"])
    metadata: Metadata = field(default_factory=lambda: Metadata(Path(), {}))
    stored: Mapping[str, GgufTensor] = field(default_factory=dict)
    """Tensors as the file has them, by transformers' names."""
    scales: Mapping[str, GgufTensor] = field(default_factory=dict)
    """One number that multiplies a whole nvfp4 weight, by transformers' name of that."""
    headers: tuple[GgufHeader, ...] = ()

    @property
    def config_file(self) -> Path:
        """The file that the config comes from."""
        return self.folder

    @property
    def container(self) -> str:
        """What the weights are stored in, if not as transformers saves them."""
        return "GGUF"

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(tensor.elements for tensor in self.tensors.values())

    @property
    def dtype(self) -> str:
        """The type that most of the weights are stored in."""
        counts = Counter[str]()
        for tensor in self.tensors.values():
            counts[tensor.dtype] += tensor.elements
        return counts.most_common(1)[0][0]

    @property
    def dequantised(self) -> str:
        """The types of the quantised weights, in words; empty if none are."""
        counts = Counter[str]()
        for tensor in self.tensors.values():
            counts[tensor.dtype] += tensor.elements if tensor.dtype in QUANTISED else 0
        names = [name for name, count in counts.most_common() if count]
        return f"GGUF ({few(names)})" if names else ""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the files, whatever they are called; of large ones over the header, size,
        modification time and samples."""
        total = hashlib.sha256(b"gguf")
        for header in self.headers:
            try:
                total.update(file_digest(header.file, header.end))
            except OSError as error:
                raise CheckpointError(f"{header.file} cannot be read: {error.strerror}") from error
        return total.hexdigest()

    def as_stored(self, name: str) -> bool:
        """Whether the bytes on disk are the tensor that `read` returns."""
        found = self.stored[name]
        return found.type.name in PLAIN and not self.architecture.change(found.name)

    def tokenizer(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `tokenizer_of`."""
        return tokenizer_of(self.metadata)

    def read(self, name: str) -> Tensor:
        """Tensor ``name``, dequantised to float32 if it is quantised; see `Checkpoint.read`."""
        import torch

        self._find(name)
        found, change = self.stored[name], self.architecture.change(self.stored[name].name)
        places = self._places(found, change)
        rows, step = found.rows, max(1, _CHUNK // found.row_bytes)
        whole: Tensor | None = None
        for a in range(0, rows, step):
            b = min(rows, a + step)
            part = self._decoded(name, found, a, b)
            if whole is None:
                whole = torch.empty(rows, found.shape[-1], dtype=part.dtype)
            whole[slice(a, b) if places is None or rows == 1 else places[a:b]] = part
        assert whole is not None
        if len(found.shape) == 1 and places is not None:  # a bias
            whole = torch.empty_like(whole).index_copy_(1, places, whole)
        if change == "plus one":
            whole = whole - 1
        shaped = whole.reshape(found.shape)
        return shaped.T.contiguous() if change == "transposed" else shaped

    def read_rows(self, name: str, a: int, b: int) -> Tensor:
        """Rows ``a`` to ``b`` of a tensor, which is read whole where rows have other places."""
        info = self._find(name)
        if not 0 <= a <= b <= info.shape[0]:
            raise CheckpointError(
                f"{info.file} has no rows {a}:{b} in {name!r} of shape {list(info.shape)}"
            )
        found = self.stored[name]
        if self.architecture.change(found.name) or len(found.shape) == 1:
            return self.read(name)[a:b]
        each = found.rows // found.shape[0]
        return self._decoded(name, found, a * each, b * each).reshape(b - a, *found.shape[1:])

    def codes(self, name: str) -> Iterator[Codes]:
        """Codes and scales of a tensor in a quantised type, some rows at a time; see `codes_of`."""
        found = self.stored[name]
        if found.type.name not in QUANTISED:
            return
        step = max(1, _CHUNK // found.row_bytes)
        for a in range(0, found.rows, step):
            raw = self._raw(name, found, a, min(found.rows, a + step))
            if (codes := codes_of(found.type.name, raw)) is not None:
                yield codes

    def _raw(self, name: str, found: GgufTensor, a: int, b: int) -> Tensor:
        import torch

        raw = torch.empty((b - a) * found.row_bytes, dtype=torch.uint8)
        self.fill(self.tensors[name], found.start + a * found.row_bytes, raw.numpy().data)
        return raw.view(b - a, found.row_bytes)

    def _decoded(self, name: str, found: GgufTensor, a: int, b: int) -> Tensor:
        """Rows ``a`` to ``b`` of a tensor as the file has it, ``[rows, in]``."""
        import torch

        raw = self._raw(name, found, a, b)
        if found.type.name in PLAIN:
            plain: torch.dtype = getattr(torch, PLAIN[found.type.name])
            return raw.view(-1).view(plain).reshape(b - a, found.shape[-1])
        decode = cast("Callable[[str, Tensor], Tensor]", resolve(_DECODE))
        values = decode(found.type.name, raw)
        if name in self.scales:
            values = values * self._scale(self.scales[name])
        return values

    def _scale(self, scale: GgufTensor) -> Tensor:
        import torch

        raw = torch.empty(scale.bytes, dtype=torch.uint8)
        info = TensorInfo(scale.name, "float32", (), scale.file, scale.start, scale.start + 4)
        self.fill(info, scale.start, raw.numpy().data)
        return raw.view(torch.float32)

    def _places(self, found: GgufTensor, change: str) -> Tensor | None:
        """Where each row of the file belongs in transformers; None if in the same place."""
        import torch

        if change not in ("query rows", "key rows"):
            return None
        rows = found.shape[0]
        heads = heads_of(change, self.config)
        order = torch.arange(rows).reshape(heads, 2, rows // heads // 2).transpose(1, 2)
        return order.reshape(rows)


def heads_of(change: str, config: Mapping[str, Any]) -> int:
    """The number of heads whose rows are interleaved."""
    key = "num_key_value_heads" if change == "key rows" else "num_attention_heads"
    return int(config[key])


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, by its ending or its first bytes."""
    try:
        if not path.is_file():
            return False
        if path.suffix.lower() == ".gguf":
            return True
        with path.open("rb") as stream:
            return stream.read(4) == MAGIC
    except (OSError, ValueError):
        return False


def open_gguf(file: Path) -> GgufCheckpoint:
    """Open a GGUF file, or all parts of a model by one of them, reading only headers.

    Raises:
        CheckpointError: something is missing, truncated, contradictory, or of an architecture or
            type that is not read; names file, key or tensor.
    """
    headers, tensors = read_files(file.expanduser().absolute())
    first = headers[0].file
    metadata = Metadata(first, headers[0].metadata)
    kind = metadata.text("general.type", "model")
    if kind != "model":
        raise CheckpointError(
            f"{first} is a GGUF file of the kind {kind!r}, not a model: give the model's own file"
        )
    name = metadata.text("general.architecture")
    experts = bool(metadata.whole(f"{name}.expert_count", 0))
    architecture = architecture_named(name, experts=experts)
    if architecture is None:
        known = MIXTURES if experts else ARCHITECTURES
        raise CheckpointError(
            f"{first} is a GGUF file of the architecture {name!r}"
            f"{' with experts' if experts else ''}; qtui reads {', '.join(known)}: open the "
            "checkpoint that it was made from"
        )
    config = config_of(architecture, metadata, tensors)
    check_sizes(architecture, metadata, tensors, config)
    stored, scales = _named(architecture, tensors, first)
    infos = {each: _info(each, found, architecture) for each, found in stored.items()}
    _check_heads(architecture, stored, config)
    return GgufCheckpoint(
        folder=first,
        name=first.stem,
        config=config,
        tensors=infos,
        files=tuple(header.file for header in headers),
        architecture=architecture,
        metadata=metadata,
        stored=stored,
        scales=scales,
        headers=tuple(headers),
    )


def _named(
    architecture: Architecture, tensors: Mapping[str, GgufTensor], first: Path
) -> tuple[dict[str, GgufTensor], dict[str, GgufTensor]]:
    """Weights by transformers' names, and the scales of whole weights by those of the weights."""
    stored: dict[str, GgufTensor] = {}
    scales: dict[str, GgufTensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        if name in NOT_WEIGHTS or name.endswith(".input_scale"):
            continue
        if experts := _experts(architecture, tensor):
            stored |= experts
            continue
        base = name.removesuffix(".scale")
        disk = architecture.disk_name(f"{base}.weight" if base != name else name)
        if disk is None:
            unknown.append(name)
        elif tensor.type.name in UNREAD:
            raise CheckpointError(
                f"{tensor.file} stores {name!r} in {tensor.type.name}, which qtui does not read; "
                "open the checkpoint that it was made from"
            )
        elif base == name:
            stored[disk] = tensor
        elif tensor.type.name == "f32" and tensor.shape == (1,):
            scales[disk] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"{first} holds tensors that no model of the architecture {architecture.name!r} has: "
            f"{few(unknown)}; open the checkpoint that it was made from"
        )
    if orphans := [scale.name for disk, scale in scales.items() if disk not in stored]:
        raise CheckpointError(f"{first} holds scales without weights: {few(orphans)}")
    return stored, scales


def _experts(architecture: Architecture, tensor: GgufTensor) -> dict[str, GgufTensor]:
    """Every expert of a tensor ``[experts, …]`` as a tensor, by transformers' name."""
    if len(tensor.shape) != 3 or tensor.type.name in UNREAD:
        return {}
    each = tensor.bytes // tensor.shape[0] if tensor.shape[0] else 0
    return {
        disk: replace(tensor, shape=tensor.shape[1:], start=tensor.start + expert * each)
        for expert, disk in enumerate(architecture.expert_names(tensor.name, tensor.shape[0]))
    }


def _info(name: str, found: GgufTensor, architecture: Architecture) -> TensorInfo:
    dtype = PLAIN.get(found.type.name, found.type.name)
    shape = found.shape
    if architecture.change(found.name) == "transposed":
        shape = tuple(reversed(shape))
    return TensorInfo(name, dtype, shape, found.file, found.start, found.start + found.bytes)


def _check_heads(
    architecture: Architecture, stored: Mapping[str, GgufTensor], config: Mapping[str, Any]
) -> None:
    """Rows that are to be put back into heads must fill them."""
    for found in stored.values():
        change = architecture.change(found.name)
        if change in ("query rows", "key rows") and found.shape[0] % (2 * heads_of(change, config)):
            raise CheckpointError(
                f"{found.file} stores {found.name!r} with {found.shape[0]} rows, which are no "
                f"{heads_of(change, config)} heads; convert it again"
            )
        if change == "transposed" and len(found.shape) != 2:
            raise CheckpointError(f"{found.file} stores {found.name!r} as {list(found.shape)}")
