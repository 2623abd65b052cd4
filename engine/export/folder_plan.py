"""Plans a quantised checkpoint that is a folder: its tensors, shard by shard, and its config."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.checkpoint import Checkpoint, DiskLayer, TensorInfo, fused_groups, list_layers
from engine.checkpoint.companions import readers_of
from engine.checkpoint.dequantised import without_quantisation
from engine.errors import CheckpointError, UsageError
from engine.export.folder_form import ExpertsForm, FolderForm, OneExpert
from engine.export.modules import Modules, read_modules
from engine.export.refusal import NotExportable, some_of
from engine.export.shards import Slot
from engine.export.tensor_groups import TensorGroup, shard_name
from engine.export.writer import Codes, Request
from engine.formats.grammar import Format, parse_format
from engine.quant.kept import DTYPES
from engine.quant.quantize import dequantized

NO_EXPERTS = "experts that are one tensor in the model have no modules to quantise"


class Plan(NamedTuple):
    config: dict[str, Any]
    shards: dict[str, list[TensorGroup]]
    quantised: Mapping[str, str]
    """Modules by layer, of experts their parameter."""
    notes: list[str]
    replaced: Mapping[str, str]
    """Modules by the tensors on disk whose weights absorb a scale, outside of layers."""


def merged(row: DiskLayer) -> bool:
    """Whether a layer's experts are one matrix each on disk."""
    return row.role == "experts" and len(row.parts) > 1


def why_not_exported(
    form: FolderForm,
    checkpoint: Checkpoint,
    recipe: Mapping[str, str],
    *,
    trust_remote_code: bool = False,
) -> dict[str, str]:
    """The layers of ``recipe`` that cannot be exported, with reasons; empty if all can.

    Raises:
        UsageError: an unknown layer.
        FormatError: a format that does not parse.
        CheckpointError: the checkpoint cannot be read.
    """
    rows, formats, modules = _resolved(checkpoint, recipe, trust_remote_code=trust_remote_code)
    return _refused(form, rows, formats, modules, checkpoint)


def _resolved(
    checkpoint: Checkpoint, recipe: Mapping[str, str], *, trust_remote_code: bool
) -> tuple[dict[str, DiskLayer], dict[str, Format], Modules]:
    _refuse_quantised(checkpoint)
    rows = {row.name: row for row in list_layers(checkpoint)}
    modules = read_modules(checkpoint, trust_remote_code=trust_remote_code)
    for layer in recipe:
        if layer in rows or layer in modules.part_of:
            continue
        if (row := _of_model_alone(layer, modules, checkpoint)) is None:
            raise UsageError(f"{checkpoint.name} has no layer {layer!r}")
        rows[layer] = row
    return rows, {layer: parse_format(text) for layer, text in recipe.items()}, modules


def _of_model_alone(layer: str, modules: Modules, checkpoint: Checkpoint) -> DiskLayer | None:
    """The row of a linear module that the files alone do not tell to be a layer, by its name."""
    tensor = checkpoint.tensors.get(f"{layer}.weight")
    kind = modules.kinds.get(modules.by_tensor.get(f"{layer}.weight", ""))
    if tensor is None or kind is None or not issubclass(kind, nn.Linear):
        return None
    last = layer.rpartition(".")[2]
    return DiskLayer(layer, last, None, tensor.shape, tensor.dtype, (tensor.name,), False, "linear")


def _refuse_quantised(checkpoint: Checkpoint) -> None:
    method = checkpoint.config.get("quantization_config")
    if checkpoint.quantised and not readers_of(checkpoint):
        return
    if method is not None or checkpoint.dtype not in ("float32", "float16", "bfloat16"):
        stored = method.get("quant_method") if isinstance(method, dict) else checkpoint.dtype
        raise CheckpointError(
            f"{checkpoint.folder} is already quantised ({stored}): export the checkpoint it was "
            "made from"
        )


def _refused(
    form: FolderForm,
    rows: Mapping[str, DiskLayer],
    formats: Mapping[str, Format],
    modules: Modules,
    checkpoint: Checkpoint,
) -> dict[str, str]:
    refused = {}
    tied = next((row for row in rows.values() if _is_tied(row, checkpoint)), None)
    pair = set() if tied is None else set(tied.parts)
    for layer, fmt in formats.items():
        if layer not in rows:
            if fmt.kept and str(DTYPES[fmt.name]) == f"torch.{checkpoint.dtype}":
                continue
            refused[layer] = (
                f"{fmt}: it is a part of {modules.part_of[layer]!r}, which transformers splits as "
                "it loads the file, and codes cannot be split"
            )
            continue
        why = form.why_not(fmt, rows[layer].shape, checkpoint.dtype)
        if why is None and not fmt.kept:
            why = modules.why_not_quantised(rows[layer], form.tool)
        if why is None and rows[layer].role == "experts":
            why = NO_EXPERTS if form.experts is None else form.experts.why_not(fmt)
        if why is None and modules.shared and pair.intersection(rows[layer].parts):
            why = (
                "head and embedding are tied, and where they are not, transformers does not read "
                "the weights that blocks share"
            )
        if why is not None:
            refused[layer] = f"{fmt}: {why}" if str(fmt) not in why else why
    known = {layer: fmt for layer, fmt in formats.items() if layer in rows}
    if refused or form.experts is None:
        return refused
    return form.experts.why_not_together(rows, known, modules.converted)


def plan_of(
    form: FolderForm,
    request: Request,
    scale_dtype: torch.dtype,
    stored: Callable[[DiskLayer, Format], Codes],
    one_expert: OneExpert,
) -> Plan:
    """Plan what happens to every tensor of the checkpoint, before anything is read.

    Args:
        form: how it is stored.
        request: of the export.
        scale_dtype: the dtype that scales are stored in.
        stored: returns the stored form of a layer when it is written.
        one_expert: returns that of one expert of a layer.

    Raises:
        NotExportable: some layers cannot be written.
        EngineError: see `why_not_exported`.
    """
    checkpoint, folds = request.checkpoint, request.folds
    rows, formats, modules = _resolved(
        checkpoint, request.recipe, trust_remote_code=request.trust_remote_code
    )
    if refused := _refused(form, rows, formats, modules, checkpoint):
        raise NotExportable(refused, form.name)
    stored_as = {name: checkpoint.tensors[row.parts[0]].dtype for name, row in rows.items()}
    changed = {
        layer: fmt
        for layer, fmt in formats.items()
        if layer in rows and (not fmt.kept or str(DTYPES[fmt.name]) != f"torch.{stored_as[layer]}")
    }
    tied = next((row for row in rows.values() if _is_tied(row, checkpoint)), None)
    owners = {part: row for row in rows.values() if row is not tied for part in row.parts}
    untied = tied is not None and (
        tied.name in changed or any(owners[part].name in changed for part in tied.parts)
    )
    notes: list[str] = []
    shards: dict[str, list[TensorGroup]] = {}
    files = list(checkpoint.files)
    for number, file in enumerate(files, 1):
        groups: list[TensorGroup] = []
        for tensor in checkpoint.tensors.values():
            if tensor.file != file:
                continue
            row = owners.get(tensor.name)
            fmt = None if row is None else changed.get(row.name)
            if row is not None and fmt is not None and not fmt.kept and merged(row):
                assert form.experts is not None
                groups.append(
                    form.experts.group(checkpoint, row, tensor.name, fmt, scale_dtype, one_expert)
                )
                continue
            groups.append(
                _tensor_group(form, request, tensor, tensor.name, row, changed, scale_dtype, stored)
            )
            if untied and tied is not None and tensor.name in tied.parts:
                name = f"{modules.head}.weight"
                groups.append(
                    _tensor_group(form, request, tensor, name, tied, changed, scale_dtype, stored)
                )
        shards[shard_name(number, len(files))] = groups
    codes = {layer: fmt for layer, fmt in changed.items() if not fmt.kept}
    if untied:
        notes.append("the head was tied to the embedding and now has its own weight")
    if kept := [name for name in rows if name not in codes and name in _dequantised(rows)]:
        notes.append(f"{some_of(kept)}: stored quantised, and written dequantised where kept")
    notes += _unlike_fellows(rows, formats)
    notes += form.notes(codes)
    # Where both are on disk, they are two weights, whatever the source's config says.
    own_head = any(row.role == "head" and row is not tied for row in rows.values())
    config = _config(checkpoint, untied=untied or own_head)
    experts = {name: row for name, row in rows.items() if merged(row)}
    module_of = {
        layer: modules.experts(rows[layer]) if layer in experts else modules.module(rows[layer])
        for layer in codes
    }
    if codes:
        config["quantization_config"] = _quantization_config(
            form, modules, codes, {name: rows[name] for name in experts}, module_of
        )
    replaced = {
        name: modules.by_tensor[name] for name in folds.tensors if name in modules.by_tensor
    }
    return Plan(config, shards, module_of, notes, replaced)


def _quantization_config(
    form: FolderForm,
    modules: Modules,
    codes: Mapping[str, Format],
    experts: Mapping[str, DiskLayer],
    module_of: Mapping[str, str],
) -> Any:
    """What the config says of a recipe: formats by module, and the modules that are kept."""
    of: ExpertsForm | None = form.experts
    quantised: dict[str, Format] = {}
    for layer, fmt in codes.items():
        together = layer in experts and of is not None
        names = of.targets(experts[layer]) if together and of is not None else [module_of[layer]]
        quantised |= dict.fromkeys(names, fmt)
    kept = [name for name in modules.linear if name not in quantised]
    if of is None:
        return form.config(quantised, kept, modules.head, {})
    kept += [each for name, row in experts.items() if name not in codes for each in of.targets(row)]
    alone = modules.converted and not any(layer in experts for layer in codes)
    return form.config(quantised, kept, modules.head, of.plain if alone else {})


def _is_tied(row: DiskLayer, checkpoint: Checkpoint) -> bool:
    """Whether the row is a head that is absent on disk."""
    return row.role == "head" and f"{row.name}.weight" not in checkpoint.tensors


def _tensor_group(
    form: FolderForm,
    request: Request,
    tensor: TensorInfo,
    name: str,
    row: DiskLayer | None,
    changed: Mapping[str, Format],
    scale_dtype: torch.dtype,
    stored: Callable[[DiskLayer, Format], Codes],
) -> TensorGroup:
    """Plan one tensor of the source, to be written as ``name``."""
    fmt = changed.get(row.name) if row is not None else None

    def read() -> Tensor:
        return request.folds.read(request.checkpoint, tensor.name, row)

    if row is None or fmt is None:
        slot = Slot(getattr(torch, tensor.dtype), tensor.shape)
        return TensorGroup({name: slot}, lambda: {name: read()})
    if fmt.kept:
        dtype = DTYPES[fmt.name]

        def cast() -> dict[str, Tensor]:
            # Through float32, with its check that every value fits into the dtype.
            whole = dequantized(read(), fmt, scale_dtype, row.name)
            return {name: whole.to(dtype)}

        return TensorGroup({name: Slot(dtype, tensor.shape)}, cast)
    prefix = name.removesuffix(".weight")
    if (row.shape, row.transposed) != (tensor.shape, False):
        raise AssertionError(f"{row.name} is not one plain tensor")

    def quantised() -> dict[str, Tensor]:
        return form.tensors(prefix, fmt, stored(row, fmt))

    return TensorGroup(form.slots(prefix, fmt, row.shape, scale_dtype), quantised)


def _config(checkpoint: Checkpoint, *, untied: bool) -> dict[str, Any]:
    """The source's config, with the dtype of its weights on disk."""
    config = without_quantisation(copy.deepcopy(checkpoint.config))
    for key in [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]:
        config[key] = checkpoint.dtype
    if untied:
        config["tie_word_embeddings"] = False
        text = config.get("text_config")
        if isinstance(text, dict):
            text["tie_word_embeddings"] = False
    return config


def _dequantised(rows: Mapping[str, DiskLayer]) -> set[str]:
    return {name for name, row in rows.items() if row.reader}


def _unlike_fellows(rows: Mapping[str, DiskLayer], formats: Mapping[str, Format]) -> list[str]:
    """A note about layers that servers store as one tensor but that have different formats."""
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
        f"vLLM and SGLang store {some_of(unlike[0])} as one tensor and cannot serve them in "
        f"different formats ({len(unlike)} such group{'s' if len(unlike) > 1 else ''}); "
        "transformers can"
    ]
