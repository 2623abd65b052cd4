"""A recipe written as a checkpoint in the form of compressed-tensors, layer by layer.

What is written is the stored form that the engine measures with, so the weights that
``transformers`` unpacks from it equal, bit for bit, those behind the figures on the screen.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.checkpoint import Checkpoint, DiskLayer, TensorInfo, fused_groups, list_layers
from engine.checkpoint import read_layer as read_disk_layer
from engine.errors import (
    CheckpointError,
    EngineError,
    FormatError,
    InfeasibleError,
    UsageError,
)
from engine.export import compressed
from engine.export.folder import appearing, check_place, copied_files, copy_files
from engine.export.modules import Modules, read_modules
from engine.export.shards import ShardWriter, Slot
from engine.formats.grammar import Format, needs_calibration, parse_format, why_not_alone
from engine.quant.methods.fold import only_weights
from engine.quant.methods.gptq import Solved
from engine.quant.quantize import dequantized, scale_dtype_for, stored_form
from engine.quant.stored import Stored

_CAST = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_MOST_NAMED = 5

OnProgress = Callable[[int, int, str], None]
"""Told bytes written, bytes in all, and the tensor in hand; raising there abandons the export."""
Form = Stored | Solved
FormOf = Callable[[DiskLayer, Format], Form | None]
"""The stored form of a layer that was found already, or None where it is to be found here."""


class NotExportable(InfeasibleError):
    """Layers that compressed-tensors, or transformers behind it, cannot hold as the recipe asks."""

    def __init__(self, refused: Mapping[str, str]) -> None:
        self.refused = dict(refused)
        """Why, by layer."""
        alike: dict[str, list[str]] = defaultdict(list)
        for layer, why in refused.items():
            alike[why].append(layer)
        lines = [f"  {_few(layers)}: {why}" for why, layers in alike.items()]
        count = f"{len(refused)} layer{'s' if len(refused) > 1 else ''}"
        super().__init__(
            f"{count} of this recipe cannot be written in the form of compressed-tensors; "
            "give them another format or keep them\n" + "\n".join(lines)
        )


@dataclass(frozen=True)
class Exported:
    """A checkpoint that was written."""

    folder: Path
    bytes: int
    """Of all tensors."""
    quantised: tuple[str, ...]
    """Layers that are stored as codes."""
    notes: tuple[str, ...]
    """What is not as one might expect, in sentences."""


class _Piece(NamedTuple):
    """Tensors that are made together, from one layer or tensor of the source."""

    slots: dict[str, Slot]
    make: Callable[[], dict[str, Tensor]]


class _Plan(NamedTuple):
    config: dict[str, Any]
    shards: dict[str, list[_Piece]]
    quantised: tuple[str, ...]
    notes: list[str]


def why_not_exported(
    checkpoint: Checkpoint, recipe: Mapping[str, str], *, trust_remote_code: bool = False
) -> dict[str, str]:
    """The layers of ``recipe`` that cannot be exported, and why; empty where all can.

    Raises:
        UsageError: an unknown layer.
        FormatError: a format that does not parse.
        CheckpointError: the checkpoint cannot be read.
    """
    rows, formats = _resolved(checkpoint, recipe)
    modules = read_modules(checkpoint, trust_remote_code=trust_remote_code)
    return _refused(rows, formats, modules, checkpoint.dtype)


def export_checkpoint(
    checkpoint: Checkpoint,
    recipe: Mapping[str, str],
    out: Path,
    *,
    scale_dtype: torch.dtype | None = None,
    overwrite: bool = False,
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
    solved: FormOf = lambda _layer, _format: None,
    on_progress: OnProgress = lambda _done, _total, _tensor: None,
) -> Exported:
    """Write ``checkpoint`` with the layers of ``recipe`` quantised, as compressed-tensors has it.

    ``transformers.AutoModelForCausalLM.from_pretrained(out)`` loads it where compressed-tensors is
    installed, and unpacks it at the first forward pass. One layer and its codes are in memory at a
    time. The folder appears when it is whole. Values that are not finite are stored as 0 in
    quantised layers. A tied head gets a weight of its own where it or the embedding changes.

    Args:
        checkpoint: what to export; not quantised already.
        recipe: formats by layer, as `list_layers` names them; layers that are not named are kept.
        out: the folder to write.
        scale_dtype: the dtype that scales are stored in; that of `scale_dtype_for` if None.
        overwrite: whether a checkpoint in ``out`` may be replaced.
        device: where codes are found.
        trust_remote_code: whether Python code of the checkpoint may be run to learn its modules.
        solved: asked for the stored form of every quantised layer, as it comes to be written: what
            calibration found goes into the file as it was measured. With scales in
            ``scale_dtype``, on any device. What calibrates has to be among it.
        on_progress: told how far it has come.

    Raises:
        NotExportable: layers that cannot be written so, all of them, with reasons.
        UsageError: an unknown layer, or ``out`` is there already.
        FormatError: a format that does not parse, or a scale that overflows.
        CheckpointError: the checkpoint cannot be read, or is quantised already.
        EngineError: the disk is too small, or cannot be written.
    """
    out = Path(out).expanduser().absolute()
    check_place(out, checkpoint.folder, overwrite=overwrite)
    scale_dtype = scale_dtype or scale_dtype_for(getattr(torch, checkpoint.dtype))

    notes: list[str] = []

    def stored(row: DiskLayer, fmt: Format) -> Form:
        weight = read_disk_layer(checkpoint, row).to(device)
        if not bool(weight.abs().amax().isfinite()):
            notes.append(f"{row.name} holds values that are NaN or infinite: stored as 0")
        found = solved(row, fmt)
        if found is not None:
            return found
        alone = only_weights(fmt)
        if needs_calibration(fmt) and (why := why_not_alone(fmt)) is not None:
            raise FormatError(f"{row.name}: {why}, and its codes were not given")
        return stored_form(weight, alone, scale_dtype, row.name)

    plan = _plan(checkpoint, recipe, scale_dtype, stored, trust_remote_code)
    beside = copied_files(checkpoint.folder)
    total = sum(slot.bytes for piece in _pieces(plan) for slot in piece.slots.values())
    copies = sum((checkpoint.folder / file).stat().st_size for file in beside)
    free = shutil.disk_usage(out.parent).free
    if total + copies > free:
        raise EngineError(
            f"{out.parent} has {free / 2**30:.2f} GiB free and the checkpoint takes "
            f"{(total + copies) / 2**30:.2f} GiB; give a path on another disk"
        )
    try:
        with appearing(out) as folder:
            copy_files(checkpoint.folder, beside, folder)
            _write_shards(plan, folder, total, on_progress)
            _write_json(folder / "config.json", plan.config)
    except OSError as error:
        raise EngineError(f"{out} cannot be written: {error.strerror or error}") from error
    return Exported(out, total, plan.quantised, tuple(dict.fromkeys([*plan.notes, *notes])))


# --- what will be written ------------------------------------------------------------------------


def _resolved(
    checkpoint: Checkpoint, recipe: Mapping[str, str]
) -> tuple[dict[str, DiskLayer], dict[str, Format]]:
    _refuse_quantised(checkpoint)
    rows = {row.name: row for row in list_layers(checkpoint)}
    for layer in recipe:
        if layer not in rows:
            raise UsageError(f"{checkpoint.name} has no layer {layer!r}")
    return rows, {layer: parse_format(text) for layer, text in recipe.items()}


def _refuse_quantised(checkpoint: Checkpoint) -> None:
    method = checkpoint.config.get("quantization_config")
    if method is not None or checkpoint.dtype not in ("float32", "float16", "bfloat16"):
        stored = method.get("quant_method") if isinstance(method, dict) else checkpoint.dtype
        raise CheckpointError(
            f"{checkpoint.folder} is quantised already ({stored}): export the checkpoint that it "
            "was made from"
        )


def _refused(
    rows: Mapping[str, DiskLayer], formats: Mapping[str, Format], modules: Modules, dtype: str
) -> dict[str, str]:
    refused = {}
    for layer, fmt in formats.items():
        why = compressed.why_not_expressed(fmt, rows[layer].shape, dtype)
        if why is None and not fmt.kept:
            why = modules.why_not_quantised(rows[layer])
        if why is not None:
            refused[layer] = f"{fmt}: {why}" if str(fmt) not in why else why
    return refused


def _plan(
    checkpoint: Checkpoint,
    recipe: Mapping[str, str],
    scale_dtype: torch.dtype,
    stored: Callable[[DiskLayer, Format], Form],
    trust_remote_code: bool,
) -> _Plan:
    rows, formats = _resolved(checkpoint, recipe)
    modules = read_modules(checkpoint, trust_remote_code=trust_remote_code)
    if refused := _refused(rows, formats, modules, checkpoint.dtype):
        raise NotExportable(refused)
    stored_as = {name: checkpoint.tensors[row.parts[0]].dtype for name, row in rows.items()}
    changed = {
        layer: fmt
        for layer, fmt in formats.items()
        if not fmt.kept or str(_CAST[fmt.name]) != f"torch.{stored_as[layer]}"
    }
    tied = next((row for row in rows.values() if _is_tied(row, checkpoint)), None)
    owners = {part: row for row in rows.values() if row is not tied for part in row.parts}
    untied = tied is not None and (
        tied.name in changed or any(owners[part].name in changed for part in tied.parts)
    )
    notes: list[str] = []
    shards: dict[str, list[_Piece]] = {}
    files = list(checkpoint.files)
    for number, file in enumerate(files, 1):
        pieces: list[_Piece] = []
        for tensor in checkpoint.tensors.values():
            if tensor.file != file:
                continue
            row = owners.get(tensor.name)
            pieces.append(
                _piece(checkpoint, tensor, tensor.name, row, changed, scale_dtype, stored)
            )
            if untied and tied is not None and tensor.name in tied.parts:
                name = f"{modules.head}.weight"
                pieces.append(_piece(checkpoint, tensor, name, tied, changed, scale_dtype, stored))
        shards[_shard_name(number, len(files))] = pieces
    codes = {layer: fmt for layer, fmt in changed.items() if not fmt.kept}
    if untied:
        notes.append("the head was tied to the embedding and now has a weight of its own")
    notes += _unlike_fellows(rows, formats)
    config = _config(checkpoint, untied=untied)
    if codes:
        quantised = {modules.module(rows[layer]): fmt for layer, fmt in codes.items()}
        kept = [name for name in modules.linear if name not in quantised]
        config["quantization_config"] = compressed.quantization_config(quantised, kept)
    return _Plan(config, shards, tuple(codes), notes)


def _is_tied(row: DiskLayer, checkpoint: Checkpoint) -> bool:
    """Whether the row is a head that is absent on disk."""
    return row.role == "head" and f"{row.name}.weight" not in checkpoint.tensors


def _piece(
    checkpoint: Checkpoint,
    tensor: TensorInfo,
    name: str,
    row: DiskLayer | None,
    changed: Mapping[str, Format],
    scale_dtype: torch.dtype,
    stored: Callable[[DiskLayer, Format], Form],
) -> _Piece:
    """What becomes of one tensor of the source, to be called ``name``."""
    fmt = changed.get(row.name) if row is not None else None
    if row is None or fmt is None:
        slot = Slot(getattr(torch, tensor.dtype), tensor.shape)
        return _Piece({name: slot}, lambda: {name: checkpoint.read(tensor.name)})
    if fmt.kept:
        dtype = _CAST[fmt.name]

        def cast() -> dict[str, Tensor]:
            # Through float32, with its check that every value has a place in the dtype.
            whole = dequantized(checkpoint.read(tensor.name), fmt, scale_dtype, row.name)
            return {name: whole.to(dtype)}

        return _Piece({name: Slot(dtype, tensor.shape)}, cast)
    prefix = name.removesuffix(".weight")
    if (row.shape, row.transposed) != (tensor.shape, False):
        raise AssertionError(f"{row.name} is not one plain tensor")

    def quantised() -> dict[str, Tensor]:
        return compressed.tensors(prefix, fmt, stored(row, fmt))

    return _Piece(compressed.slots(prefix, fmt, row.shape, scale_dtype), quantised)


def _config(checkpoint: Checkpoint, *, untied: bool) -> dict[str, Any]:
    """The source's config, with the dtype that its weights have on disk."""
    config = copy.deepcopy(checkpoint.config)
    for key in [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]:
        config[key] = checkpoint.dtype
    if untied:
        config["tie_word_embeddings"] = False
        text = config.get("text_config")
        if isinstance(text, dict):
            text["tie_word_embeddings"] = False
    return config


def _unlike_fellows(rows: Mapping[str, DiskLayer], formats: Mapping[str, Format]) -> list[str]:
    """A note on layers that servers store as one and that hold unlike formats."""
    blocks = [-1 if row.block is None else row.block for row in rows.values()]
    numbers = fused_groups(list(rows), blocks, [row.role for row in rows.values()])
    held: dict[int, set[str]] = defaultdict(set)
    members: dict[int, list[str]] = defaultdict(list)
    for name, number in zip(rows, numbers, strict=True):
        if number >= 0:
            held[number].add(str(formats.get(name, "kept")))
            members[number].append(name)
    unlike = [members[number] for number, kinds in held.items() if len(kinds) > 1]
    if not unlike:
        return []
    return [
        f"vLLM and SGLang store {_few(unlike[0])} as one tensor and will not serve them in unlike "
        f"formats ({len(unlike)} such group{'s' if len(unlike) > 1 else ''}); transformers will"
    ]


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"


# --- writing -------------------------------------------------------------------------------------


def _pieces(plan: _Plan) -> Iterator[_Piece]:
    for pieces in plan.shards.values():
        yield from pieces


@torch.no_grad()
def _write_shards(plan: _Plan, folder: Path, total: int, on_progress: OnProgress) -> None:
    done = 0
    places: dict[str, str] = {}
    for file, pieces in plan.shards.items():
        slots = {name: slot for piece in pieces for name, slot in piece.slots.items()}
        with ShardWriter(folder / file, slots) as shard:
            for piece in pieces:
                on_progress(done, total, next(iter(piece.slots)))
                made = piece.make()
                for name in list(made):
                    shard.write(name, made.pop(name))
                done += sum(slot.bytes for slot in piece.slots.values())
            shard.finish()
        places |= dict.fromkeys(slots, file)
    on_progress(done, total, "")
    if len(plan.shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        _write_json(folder / "model.safetensors.index.json", index)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    file.write_text(text, encoding="utf-8")


def _few(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
