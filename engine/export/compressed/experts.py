"""Experts in a compressed-tensors checkpoint, as transformers 5.23 reads them.

Experts that are one tensor in the model and one matrix each on disk are merged when they are
loaded. Where a checkpoint has codes, that runs through ``CompressedTensorsDequantize``, which

- takes one config group for all experts of the checkpoint: the first with a regular expression
  that contains ``experts``, else the first with an exact name;
- if that group is packed integers, reads codes, scales and shapes, no zero points, and drops what
  is stored plain;
- if it is fp8, multiplies codes by scales and passes on what is plain.

So packed experts need one format for all of them, and plain ones beside other layers' codes need
a group of fp8 that names experts: one that matches no module serves, and changes nothing for other
programs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint import Checkpoint, DiskLayer
from engine.export.compressed.layouts import slots, tensors
from engine.export.expert_codes import rows_of
from engine.export.folder_form import ExpertsForm, OneExpert
from engine.export.folder_plan import merged
from engine.export.folds import lines_of
from engine.export.tensor_groups import TensorGroup
from engine.formats.grammar import Format

PLAIN_EXPERTS: dict[str, Any] = {
    "format": "float-quantized",
    "targets": ["re:^experts that are kept$"],
    "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
}
"""A config group that matches no module: with it transformers reads plain experts."""


def why_not_read(fmt: Format) -> str | None:
    """Why transformers cannot merge experts in a format; None if it can."""
    if fmt.kept:
        return None
    if any(method.name == "a8" for method in fmt.methods):
        return "transformers does not round the inputs of experts that it reads from codes"
    if fmt.name == "fp8-e4m3":
        whole = fmt.strategy in ("channel", "tensor")
        return None if whole else "transformers reads fp8 experts per channel or tensor only"
    if fmt.family != "integer":
        return "transformers reads experts in integer formats and fp8-e4m3 only"
    if not fmt.symmetric:
        return "transformers reads no zero points of experts: take a symmetric format (-sym)"
    if fmt.strategy == "tensor":
        return "transformers reads integer experts per group or channel only"
    solved = next((method for method in fmt.methods if method.name == "gptq"), None)
    if solved is None:
        return None
    if "actorder" in dict(solved.options):
        return "transformers does not reorder the columns of experts"
    return "the codes that '+gptq' finds for experts are not kept until they are written"


def why_not_together(
    rows: Mapping[str, DiskLayer], formats: Mapping[str, Format], converted: frozenset[str]
) -> dict[str, str]:
    """Quantised experts that cannot be merged for what the others are, with the reason.

    Args:
        rows: all layers.
        formats: by layer; others are kept.
        converted: see `Modules.converted`.
    """
    codes = {name: fmt for name, fmt in formats.items() if merged(rows[name]) and not fmt.kept}
    packed = {name: fmt for name, fmt in codes.items() if fmt.family == "integer"}
    parts = {part for name in packed for part in rows[name].parts}
    plain = converted - parts
    alike = {(fmt.bits, fmt.strategy, fmt.group_size) for fmt in packed.values()}
    if not packed or (len(alike) == 1 and not plain):
        return {}
    also = f", and drops plain ones such as {min(plain)}" if plain else ""
    why = (
        f"transformers merges all experts of a checkpoint from one integer format{also}: give all "
        "experts the same, keep all of them, or take fp8-e4m3"
    )
    return {name: f"{fmt}: {why}" for name, fmt in packed.items()}


def targets(row: DiskLayer) -> list[str]:
    """Regular expressions for the modules of a layer's experts, by their names on disk."""
    found: dict[str, list[str]] = {}
    for part in row.parts:
        home, _, kind = part.removesuffix(".weight").rpartition(".")
        kinds = found.setdefault(home.rpartition(".")[0], [])
        if kind not in kinds:
            kinds.append(kind)
    return [
        rf"re:^{re.escape(home)}\.\d+\.({'|'.join(map(re.escape, kinds))})$"
        for home, kinds in found.items()
    ]


def expert_group(
    checkpoint: Checkpoint,
    row: DiskLayer,
    part: str,
    fmt: Format,
    scale_dtype: torch.dtype,
    stored: OneExpert,
) -> TensorGroup:
    """Plan one matrix of a layer's experts, such as an expert's gate.

    Args:
        checkpoint: the source.
        row: the layer.
        part: the matrix's name on disk.
        fmt: its format.
        scale_dtype: the dtype of scales; float32 in a checkpoint of float32, since transformers
            multiplies by them in their own.
        stored: returns the stored form of one expert when it is written.
    """
    expert = row.parts.index(part) // (len(row.parts) // row.shape[0])
    lines, shape = lines_of(checkpoint, row, part), tuple(checkpoint.tensors[part].shape)
    dtype = torch.float32 if checkpoint.dtype == "float32" else scale_dtype
    prefix = part.removesuffix(".weight")
    wanted = slots(prefix, fmt, shape, dtype)

    def quantised() -> dict[str, Tensor]:
        form = rows_of(stored(row, fmt, expert), lines)
        return {
            name: tensor.to(wanted[name].dtype)
            for name, tensor in tensors(prefix, fmt, form).items()
        }

    return TensorGroup(wanted, quantised)


EXPERTS = ExpertsForm(
    why_not_read, why_not_together, expert_group, targets, {"kept_experts": PLAIN_EXPERTS}
)
