"""Which tensors of a checkpoint are layers, from their names and shapes.

This runs before a model exists and before torch is imported, so that the layer table is there at
once. Where transformers fuses experts on load, rows have the names of the model in memory, so that
these rows and the model's are the same.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.companions import check_companions, read_plain
from engine.checkpoint.headers import TensorInfo
from engine.checkpoint.names import block_of
from engine.checkpoint.quantised.reader import (
    Reader,
    reader_named,
    reader_of,
    scale_of,
    scales_of,
)
from engine.checkpoint.unlisted import check_blocks
from engine.errors import CheckpointError
from engine.protocol import Role

if TYPE_CHECKING:
    from torch import Tensor


_EXPERT = re.compile(r"^(?P<home>.*\bexperts)\.(?P<index>[0-9]{1,6})\.(?P<kind>[^.]+)\.weight$")
_GATE_UP = {"w1": "gate", "w3": "up", "gate_proj": "gate", "up_proj": "up"}
_DOWN = {"w2", "down_proj"}
_ROUTER = re.compile(r"router|expert_gate$")
_ROUTER_BESIDE_EXPERTS = {"gate", "wg"}
_OUTSIDE = {"project_in", "project_out", "per_layer_model_projection"}  # linear, outside of blocks
_NORM = re.compile(r"norm|^ln_")
_OTHER_SENSE = re.compile(r"vision|visual|audio|image|speech|projector|^mtp$")
_EMBEDDING = {
    *("embed_tokens", "wte", "word_embeddings", "embeddings", "embed_in", "embedding", "embed"),
    *("tok_embeddings", "tokens_embed"),
}
_HEAD = {"lm_head", "embed_out", "output", "output_layer", "head", "unembed"}
_FUSED_DOWN = {"down_proj", "output_linear", "w2_weight", "fc2"}
_FUSED = {"gate_up_proj", "gate_proj", "up_proj", "input_linear", "w13_weight", "fc1", *_FUSED_DOWN}
# GPT-2 and similar models store these transposed; GPTBigCode has the names but does not.
_CONV1D_MODELS = {"gpt2", "openai-gpt", "decision_transformer", "imagegpt"}
_CONV1D = {"c_attn", "q_attn", "c_proj", "c_fc"}
_TRANSPOSED_EXPERTS = {"gpt_oss", "llama4", "llama4_text"}
# Order of rows in a block: attention and its replacements, then the rest.
_ATTENTION = re.compile(r"attn|attention|mixer|temporal|conv")
_FLOW = (
    *("q_proj", "k_proj", "v_proj", "qkv_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa"),
    *("kv_b_proj", "query_key_value", "c_attn", "in_proj", "o_proj", "out_proj", "dense"),
    *("gate_proj", "up_proj", "gate_up_proj", "w1", "w3", "fc1", "c_fc", "fc_in"),
    *("dense_h_to_4h", "input_linear", "down_proj", "w2", "fc2", "fc_out", "dense_4h_to_h"),
    *("output_linear", "c_proj"),
)


@dataclass(frozen=True)
class DiskLayer:
    """One quantisable weight as stored on disk.

    ``shape`` is ``[out, in]`` or ``[experts, out, in]`` whatever the order on disk; ``transposed``
    means the reverse order on disk. ``parts`` are its tensors: for fused experts, expert by expert,
    gate before up. ``scales`` are the tensors that a quantised weight is stored in besides its
    codes, one per part if it has one scale, or none; ``reader`` then names the layout, and
    ``dtype`` the format.
    """

    name: str
    kind: str
    block: int | None
    shape: tuple[int, ...]
    dtype: str
    parts: tuple[str, ...]
    transposed: bool
    role: Role
    scales: tuple[str, ...] = ()
    reader: str = ""
    own_bits: int = 0
    """Bits of all its tensors, where shape and dtype do not tell."""

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return prod(self.shape)


def list_layers(checkpoint: Checkpoint) -> list[DiskLayer]:
    """The layers of ``checkpoint``: embedding, blocks in order, those outside of blocks, head.

    Norms, biases, routers, convolutions, position tables, vision and audio towers are not layers,
    nor are blocks beyond the number in the config (extra heads that transformers does not load). A
    head that is tied to the embedding and absent on disk is a row named ``lm_head``.

    Raises:
        CheckpointError: no blocks are found, or one whose weights are all unknown; experts are
            missing or differ in shape; weights are packed by another quantiser, or without scales.
    """
    check_companions(checkpoint)
    body, blocks = _find_body(checkpoint)
    tables = [
        tensor
        for tensor in checkpoint.tensors.values()
        if len(tensor.shape) == 2 and not block_of(tensor.name) and not _is_other_sense(tensor)
    ]
    embedding = _find_embedding(checkpoint, tables)
    head = next((tensor for tensor in tables if _is_weight(tensor, _HEAD)), None)
    rows = [] if embedding is None else [_row(checkpoint, embedding, None, "embedding")]
    for index, tensors in sorted(blocks.items()):
        rows += _block_layers(checkpoint, index, tensors, len(f"{body}.{index}."))
    check_blocks(checkpoint, body, blocks, [row.block for row in rows if row.block is not None])
    rows += [_row(checkpoint, t, None, "linear") for t in tables if _is_weight(t, _OUTSIDE)]
    if head is not None:
        rows.append(_row(checkpoint, head, None, "head"))
    elif embedding is not None and setting(checkpoint.config, "tie_word_embeddings") is not False:
        tied = _row(checkpoint, embedding, None, "head")
        rows.append(replace(tied, name="lm_head", kind="lm_head"))
    return rows


def read_layer(checkpoint: Checkpoint, layer: DiskLayer) -> Tensor:
    """The weight of ``layer`` on the CPU: ``[out, in]`` or ``[experts, out, in]``, contiguous.

    As stored, except that an 8-bit or 4-bit weight is multiplied by its scales, in float32. Holds
    at most one part in addition to the result.
    """
    import torch

    def part(i: int) -> Tensor:
        stored = _read_part(checkpoint, layer, i)
        return stored.transpose(-1, -2) if layer.transposed else stored

    first = part(0)
    if len(layer.parts) == 1:
        return first.contiguous().view(layer.shape)  # a single expert may be stored as [out, in]
    whole = torch.empty(layer.shape, dtype=first.dtype)
    room = whole.view(-1, layer.shape[-1])
    filled = 0
    for i in range(len(layer.parts)):
        piece = first if i == 0 else part(i)
        room[filled : filled + len(piece)] = piece
        filled += len(piece)
    return whole


def read_expert(checkpoint: Checkpoint, layer: DiskLayer, expert: int) -> Tensor:
    """One expert ``[out, in]`` of a layer ``[experts, out, in]``; see `read_layer`.

    Other experts are not read, except from a pickled checkpoint.

    Raises:
        CheckpointError: it cannot be read.
        IndexError: the layer has no such expert.
    """
    import torch

    if layer.role != "experts" or not 0 <= expert < layer.shape[0]:
        raise IndexError(f"{layer.name} of shape {list(layer.shape)} has no expert {expert}")
    if len(checkpoint.tensors[layer.parts[0]].shape) == 2:  # stored expert by expert
        each, found = len(layer.parts) // layer.shape[0], []
        for i in range(expert * each, (expert + 1) * each):
            stored = _read_part(checkpoint, layer, i)
            found.append(stored.transpose(-1, -2) if layer.transposed else stored)
        return (torch.cat(found) if len(found) > 1 else found[0]).contiguous()
    stored = _read_part(checkpoint, layer, 0, expert)
    whole = stored.transpose(-1, -2) if layer.transposed else stored
    return whole[0].contiguous()


def _read_part(
    checkpoint: Checkpoint, layer: DiskLayer, part: int, expert: int | None = None
) -> Tensor:
    """One part of a layer, dequantised if it is quantised; of one expert ``[1, …]`` if given."""
    name = layer.parts[part]
    read = reader_named(layer.reader).read if layer.reader else None
    if read is not None and name not in checkpoint.quantised:
        return read(checkpoint, name, layer.scales[part], expert)
    if expert is None:
        return read_plain(checkpoint, name, checkpoint.read(name))
    rows = checkpoint.read_rows(name, expert, expert + 1)
    return read_plain(checkpoint, name, rows)


def setting(config: dict[str, Any], *names: str) -> object:
    """The first of ``names`` that the config, or its text model's config, sets.

    Args:
        config: as in ``config.json``.
        names: of settings, the preferred one first.
    """
    inner = [config[key] for key in ("text_config", "llm_config") if key in config]
    for table in (config, *(t for t in inner if isinstance(t, dict))):
        for name in names:
            if table.get(name) is not None:
                return table[name]
    return None


def _model_types(config: dict[str, Any]) -> set[object]:
    inner = config.get("text_config")
    found = {str(config.get("model_type"))}
    return found | ({str(inner.get("model_type"))} if isinstance(inner, dict) else set())


def _is_other_sense(tensor: TensorInfo) -> bool:
    """Whether it belongs to a vision or audio tower, or to extra heads."""
    return is_other_sense(tensor.name.split(".")[:-2])


def is_other_sense(path: Iterable[str]) -> bool:
    """Whether a path of modules leads into a vision or audio tower, or to extra heads."""
    return any(_OTHER_SENSE.search(word) for word in path)


def _find_body(checkpoint: Checkpoint) -> tuple[str, dict[int, list[TensorInfo]]]:
    """The list of blocks with most parameters: its name, and its tensors by block."""
    lists: dict[str, dict[int, list[TensorInfo]]] = defaultdict(lambda: defaultdict(list))
    sizes: dict[str, int] = defaultdict(int)
    for tensor in checkpoint.tensors.values():
        found = block_of(tensor.name)
        if found and not _is_other_sense(tensor):
            name, index = found
            lists[name][index].append(tensor)
            sizes[name] += tensor.elements
    if not lists:
        raise CheckpointError(
            f"{checkpoint.folder} has no numbered blocks of weights, such as model.layers.0; "
            "it is not a causal language model that qtui can read"
        )
    body = max(sizes, key=lambda name: sizes[name])
    count = setting(checkpoint.config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    if isinstance(count, int) and count > 0:
        return body, {i: tensors for i, tensors in lists[body].items() if i < count}
    return body, lists[body]


def _is_weight(tensor: TensorInfo, kinds: set[str]) -> bool:
    words = tensor.name.split(".")
    return words[-1] == "weight" and len(words) > 1 and words[-2] in kinds


def _find_embedding(checkpoint: Checkpoint, tables: list[TensorInfo]) -> TensorInfo | None:
    """The input embedding: by its usual names, else the only table with a row per token."""
    named = [t for t in tables if _is_weight(t, _EMBEDDING)]
    if named:
        return max(named, key=lambda t: t.elements)
    vocabulary = setting(checkpoint.config, "vocab_size")
    sized = [t for t in tables if t.shape[0] == vocabulary and not _is_weight(t, _HEAD)]
    return sized[0] if len(sized) == 1 else None


def _row(checkpoint: Checkpoint, tensor: TensorInfo, block: int | None, role: Role) -> DiskLayer:
    """A row for one tensor, with its shape in the order ``[.., out, in]``."""
    name = tensor.name.removesuffix(".weight")
    kind = name.rpartition(".")[2]
    turned = (role == "conv1d") or (role == "experts" and _are_turned(checkpoint, kind, tensor))
    *lead, out, inner = tensor.shape
    shape = (*lead, inner, out) if turned else tensor.shape
    row = DiskLayer(name, kind, block, shape, tensor.dtype, (tensor.name,), turned, role)
    return _with_layout(checkpoint, row, (tensor,))


def _with_layout(
    checkpoint: Checkpoint, row: DiskLayer, parts: tuple[TensorInfo, ...]
) -> DiskLayer:
    """The row with the layout that its parts are stored in, if they are quantised."""
    made = [checkpoint.quantised[part.name] for part in parts if part.name in checkpoint.quantised]
    if not made:
        reader, scales = scales_of(checkpoint, parts)
        return replace(row, scales=scales, reader=reader)
    forms = list(dict.fromkeys(weight.form for weight in made))
    plain = {part.dtype for part in parts if part.name not in checkpoint.quantised}
    return replace(
        row,
        dtype=" and ".join([*forms, *plain]),
        scales=tuple(piece for weight in made for piece in weight.pieces[1:]),
        reader=made[0].layout,
        own_bits=8 * sum(part.bytes for part in parts),
    )


def _unpacked_row(
    checkpoint: Checkpoint, codes: TensorInfo, reader: Reader, block: int
) -> DiskLayer | None:
    """A row of experts whose codes have a name and a shape of their own, or None.

    They are stored as ``[E, out, in]`` whatever the model uses.
    """
    if reader.layer is None:
        return None
    name, shape = reader.layer(codes)
    return DiskLayer(
        name=name,
        kind=name.rpartition(".")[2],
        block=block,
        shape=shape,
        dtype=reader.name,
        parts=(codes.name,),
        transposed=False,
        role="experts",
        scales=(scale_of(checkpoint, reader, codes.name),),
        reader=reader.name,
    )


def _are_turned(checkpoint: Checkpoint, kind: str, tensor: TensorInfo) -> bool:
    """Whether experts are stored as ``[E, in, out]``: by the hidden size, else by the model."""
    hidden = setting(checkpoint.config, "hidden_size")
    _, first, second = tensor.shape
    if (first == hidden) != (second == hidden):
        return (second if kind in _FUSED_DOWN else first) == hidden
    return not _TRANSPOSED_EXPERTS.isdisjoint(_model_types(checkpoint.config))


def _block_layers(
    checkpoint: Checkpoint, index: int, tensors: list[TensorInfo], skip: int
) -> list[DiskLayer]:
    """The layers of one block; ``skip`` is the length of the names' common prefix."""
    rows: list[DiskLayer] = []
    experts: dict[str, dict[tuple[str, int], TensorInfo]] = defaultdict(dict)
    has_experts = any(".experts." in tensor.name for tensor in tensors)
    is_conv1d = not _CONV1D_MODELS.isdisjoint(_model_types(checkpoint.config))
    for tensor in tensors:
        words = tensor.name[skip:].removesuffix(".weight").split(".")
        kind, weight = words[-1], tensor.name.endswith(".weight")
        expert = _EXPERT.match(tensor.name)
        if expert and (expert["kind"] in _GATE_UP or expert["kind"] in _DOWN):
            experts[expert["home"]][expert["kind"], int(expert["index"])] = tensor
        elif _NORM.search(kind) or _routes(words, has_experts):
            continue
        elif (reader := reader_of(checkpoint, tensor)) and (
            row := _unpacked_row(checkpoint, tensor, reader, index)
        ):
            rows.append(row)
        elif len(tensor.shape) == 3 and kind in _FUSED:
            rows.append(_row(checkpoint, tensor, index, "experts"))
        elif len(tensor.shape) == 2 and weight:
            turned = is_conv1d and kind in _CONV1D
            rows.append(_row(checkpoint, tensor, index, "conv1d" if turned else "linear"))
    for home, found in experts.items():
        rows += _fuse(checkpoint, home, found, index)
    return sorted(rows, key=lambda row: _computation_order(row.name[skip:] or row.name))


def _routes(words: list[str], has_experts: bool) -> bool:
    """Whether the tensor is a router: ``gate`` is one only if there are experts."""
    if has_experts and not _ROUTER_BESIDE_EXPERTS.isdisjoint(words):
        return True
    return any(_ROUTER.search(word) for word in words)


def _computation_order(path: str) -> tuple[bool, bool, int, str]:
    """Sort key of the layer at ``path``, by the order of computation in a block."""
    home, _, kind = path.rpartition(".")
    attends = _ATTENTION.search(home) is not None
    return not attends, "expert" in home, _FLOW.index(kind) if kind in _FLOW else -1, path


def _fuse(
    checkpoint: Checkpoint, home: str, found: dict[tuple[str, int], TensorInfo], block: int
) -> list[DiskLayer]:
    """Rows for experts that are stored one by one and fused by transformers on load."""
    kinds = {kind for kind, _ in found}
    gate_up = sorted(kinds & set(_GATE_UP), key=lambda kind: _GATE_UP[kind])
    count = 1 + max(index for _, index in found)
    # LongCat's experts that do nothing: transformers stores the first half of each all the same.
    idle = setting(checkpoint.config, "zero_expert_num") or 0
    if "w1" in kinds:
        home = home.replace(".block_sparse_moe.", ".mlp.").replace(".ffn.", ".mlp.")
    if home.startswith("backbone."):  # NemotronH's
        home = f"model.{home.removeprefix('backbone.')}"
    # Experts without a gate (NemotronH) keep the name of their one projection.
    paired = len(gate_up) > 1 or not kinds.isdisjoint({"w1", "w3", "gate_proj"})
    rows = []
    for name, members in (
        ("gate_up_proj" if paired else "up_proj", gate_up),
        ("down_proj", [kind for kind in kinds if kind in _DOWN]),
    ):
        if not members:
            continue
        if name == "gate_up_proj" and len(members) != 2:
            raise CheckpointError(
                f"{checkpoint.folder} holds {members[0]} of {home} without its other half; "
                "finish the download"
            )
        own = 1 + max(index for kind, index in found if kind in members)
        each = own if idle and count - own == idle else count
        rows.append(_fused_row(checkpoint, f"{home}.{name}", members, each, found, block))
    return rows


def _fused_row(
    checkpoint: Checkpoint,
    name: str,
    members: list[str],
    count: int,
    found: dict[tuple[str, int], TensorInfo],
    block: int,
) -> DiskLayer:
    """One fused row: for each of ``count`` experts its ``members``, stacked."""
    parts = []
    for index in range(count):
        for kind in members:
            part = found.get((kind, index))
            if part is None:
                raise CheckpointError(
                    f"{checkpoint.folder} lacks {kind} of expert {index} for {name}; "
                    "finish the download"
                )
            first = found[kind, 0]
            if (part.shape, part.dtype) != (first.shape, first.dtype) or len(part.shape) != 2:
                raise CheckpointError(
                    f"{part.file} stores {part.name!r} as {part.dtype} {list(part.shape)}, "
                    f"unlike {first.name!r}, {first.dtype} {list(first.shape)}"
                )
            parts.append(part)
    width = parts[0].shape[1]
    if any(part.shape[1] != width for part in parts):
        raise CheckpointError(f"{checkpoint.folder} stores halves of {name} with different widths")
    out = sum(part.shape[0] for part in parts[: len(members)])
    row = DiskLayer(
        name=name,
        kind=name.rpartition(".")[2],
        block=block,
        shape=(count, out, width),
        dtype=parts[0].dtype,
        parts=tuple(part.name for part in parts),
        transposed=False,
        role="experts",
    )
    return _with_layout(checkpoint, row, tuple(parts))
