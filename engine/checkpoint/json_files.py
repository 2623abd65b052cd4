"""JSON of a checkpoint: bounded in size and depth, with one meaning."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from engine.checkpoint.files import LARGEST_TEXT, check_file
from engine.checkpoint.links import refuse_pointer
from engine.errors import CheckpointError

_AGAIN = "download or save it again"


def read_object(
    folder: Path, file: Path, *, follow: bool = False, unique: bool = False
) -> tuple[dict[str, Any], str]:
    """The JSON object in a file of a checkpoint, and the SHA-256 of its bytes.

    Raises:
        CheckpointError: see `engine.checkpoint.files.check_file` and `parse_object`.
    """
    check_file(folder, file, follow=follow, largest=LARGEST_TEXT)
    try:
        with file.open("rb") as stream:
            text = stream.read(LARGEST_TEXT + 1)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    refuse_pointer(file, text)
    return parse_object(f"{file} is", text, unique=unique), hashlib.sha256(text).hexdigest()


def parse_object(subject: str, text: bytes, *, unique: bool) -> dict[str, Any]:
    """The object that some JSON holds.

    Args:
        subject: how messages begin, as in "config.json is".
        text: the JSON.
        unique: whether a key that appears twice is refused: readers differ in which they take.

    Raises:
        CheckpointError: it is no JSON, nested too deeply, or no object.
    """
    pairs = _unique if unique else None
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=pairs, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{subject} not UTF-8 ({error.reason}); {_AGAIN}") from error
    except RecursionError as error:
        raise CheckpointError(f"{subject} nested too deeply; {_AGAIN}") from error
    except ValueError as error:
        raise CheckpointError(f"{subject} not valid JSON ({error}); {_AGAIN}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{subject} a {type(found).__name__}, not an object; {_AGAIN}")
    return found


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r} appears twice")
    return found


def _constant(word: str) -> float:
    """Infinity, which configs of Mamba have; NaN in a config makes every logit NaN."""
    if word == "NaN":
        raise ValueError("it holds NaN")
    return float(word)
