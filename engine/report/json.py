"""How documents are written as JSON: how each number is written, indentation, whole files."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from engine.report.schema import Number
from engine.store.files import write_whole


def finite(value: float) -> Number:
    """The number as JSON has it, in full precision; None where it is NaN or infinite."""
    return value if math.isfinite(value) else None


def encode(document: msgspec.Struct) -> bytes:
    """A document as JSON, indented, with a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def write(document: msgspec.Struct, path: Path) -> None:
    """Write a document so that a reader finds the old file or the new one, whole.

    Raises:
        OSError: if it cannot be written.
    """
    write_whole(path, encode(document))
