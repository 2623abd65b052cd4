"""The document of `qtui imatrix`."""

from __future__ import annotations

from engine.report.schema.parts import CalibrationPart, Model, Number, Part


class ImatrixDocument(Part, frozen=True, kw_only=True, tag_field="schema", tag="qtui.imatrix/1"):
    """An importance matrix, written for llama.cpp."""

    checkpoint: Model
    """The checkpoint whose inputs it is about."""
    calibration: CalibrationPart
    """The text that it was made with."""
    file: str
    """Path of the written file."""
    bytes: int
    """Its size."""
    weights: int
    """Weights of llama.cpp that it has an importance for."""
    left: dict[str, str]
    """Layers that it leaves out, with the reason."""
    versions: dict[str, str]
    """Versions of libraries that figures may depend on, by name."""
    timings: dict[str, Number]
    """Seconds by what they were spent on."""
