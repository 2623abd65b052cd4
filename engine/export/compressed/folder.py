"""Compressed-tensors as a form of folder."""

from __future__ import annotations

from collections.abc import Mapping

from engine.checkpoint import Checkpoint
from engine.export import folder_plan
from engine.export.compressed.config import quantization_config
from engine.export.compressed.experts import EXPERTS
from engine.export.compressed.expressed import why_not_expressed
from engine.export.compressed.layouts import slots, tensors
from engine.export.folder_form import FolderForm
from engine.export.packing import LAST_PADDED, is_dense
from engine.formats.grammar import Format


def _unlike_readers(codes: Mapping[str, Format]) -> list[str]:
    """Notes about what other versions of compressed-tensors read otherwise, or do not load."""
    return [*_packed_otherwise(codes), *_not_loaded(codes)]


def _not_loaded(codes: Mapping[str, Format]) -> list[str]:
    """Found with transformers 5.23 and 5.24: it makes room for zero points that are not packed."""
    asymmetric = (fmt for fmt in codes.values() if fmt.family == "integer" and not fmt.symmetric)
    if not (formats := sorted({str(fmt) for fmt in asymmetric})):
        return []
    return [
        f"{', '.join(formats)}: transformers does not load packed zero points with "
        "compressed-tensors 0.18 to 0.20.1, and says that sizes do not match: load it with "
        f"{LAST_PADDED}, or use a symmetric format, such as int4-g128-sym"
    ]


def _packed_otherwise(codes: Mapping[str, Format]) -> list[str]:
    odd = sorted({fmt.bits for fmt in codes.values() if fmt.family == "integer" and 32 % fmt.bits})
    if not odd:
        return []
    bits = " and ".join(map(str, odd))
    if is_dense():
        return [
            f"codes of {bits} bits are packed as compressed-tensors from 0.18 on reads them; up to "
            f"{LAST_PADDED} it reads other values from the same file without an error"
        ]
    return [
        f"codes of {bits} bits are packed as compressed-tensors up to {LAST_PADDED}, which is "
        "installed, reads them; from 0.18 on it reads other values from the same file without an "
        f"error: load it with compressed-tensors=={LAST_PADDED}, export it where a newer one is "
        "installed, or use 4 or 8 bits"
    ]


COMPRESSED = FolderForm(
    name="compressed-tensors",
    why_not=why_not_expressed,
    slots=slots,
    tensors=tensors,
    config=lambda formats, kept, _head, more: quantization_config(formats, kept, more),
    notes=_unlike_readers,
    experts=EXPERTS,
)


def why_not_exported(
    checkpoint: Checkpoint, recipe: Mapping[str, str], *, trust_remote_code: bool = False
) -> dict[str, str]:
    """`folder_plan.why_not_exported` of this form."""
    return folder_plan.why_not_exported(
        COMPRESSED, checkpoint, recipe, trust_remote_code=trust_remote_code
    )
