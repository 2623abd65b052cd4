"""The document of `qtui export`."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from engine.report.schema.parts import LayerFallback, Model, Number, Part


class ExportDocument(Part, frozen=True, kw_only=True, tag_field="schema", tag="qtui.export/1"):
    """A recipe written for an export target."""

    checkpoint: Model
    """The checkpoint that was exported."""
    recipe: dict[str, str]
    """Layers that are not kept, with canonical formats."""
    to: str
    """Name of the export target."""
    codes: bool
    """Whether the codes were written; otherwise a recipe, by which another tool makes them."""
    folder: str
    """Path of the written folder, or file."""
    bytes: int
    """Bytes of all tensors on disk, including padding to 32-bit words; or of the file."""
    bits_per_weight: Number
    """Bits per weight of the body, as in an evaluation."""
    bits_all: Number | UnsetType = UNSET
    """Bits per weight of every layer, as in an evaluation."""
    layers: int
    """Number of layers stored as codes, or quantised by the file."""
    fallbacks: list[LayerFallback]
    """Layers that do not get a format asked for."""
    notes: list[str]
    """Sentences about anything unexpected."""
    versions: dict[str, str]
    """Versions of libraries that figures may depend on, by name."""
    timings: dict[str, Number]
    """Seconds by what they were spent on."""
