"""The GPTQ layout as a form of folder."""

from __future__ import annotations

from engine.export.folder_form import FolderForm
from engine.export.gptq.expressed import quantization_config, why_not_expressed
from engine.export.gptq.words import slots, tensors

GPTQ = FolderForm(
    name="a GPTQ checkpoint",
    why_not=why_not_expressed,
    slots=slots,
    tensors=tensors,
    config=lambda formats, kept, head, _more: quantization_config(formats, kept, head),
    tool="the GPTQ layout",
)
