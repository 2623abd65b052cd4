"""Settings remembered between runs: appearance, and where files were saved."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import platformdirs

from qtui.user.themes import Depth


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is remembered, with what holds where nothing is."""

    themes: dict[Depth, str] = {}
    """The theme last chosen, for each kind of terminal: of many colours, of sixteen, of none."""
    pane: bool | None = None
    """Whether the pane beside the table was shown; None where nobody chose."""
    log: bool | None = None
    """Whether the log below the table was shown; None where nobody chose."""
    log_counts: bool = True
    """Whether histograms go with the logarithm of the counts."""
    folder: str = ""
    """Where the last file was saved."""


def remembered_path() -> Path:
    """``~/.local/state/qtui/interface.json``, or where XDG says. Nothing is made."""
    return Path(platformdirs.user_state_dir("qtui")) / "interface.json"


def recall() -> tuple[Remembered, str]:
    """What was remembered, and what is wrong with the file, or nothing.

    A file that is no JSON is set aside; of one with a wrong value the others are kept. Keys of a
    newer version are passed over.
    """
    path = remembered_path()
    try:
        found = _decoded(path.read_bytes())
    except FileNotFoundError:
        return Remembered(), ""
    except OSError as error:
        return Remembered(), f"{path}: cannot be read: {error.strerror or error}"
    except ValueError as error:
        aside = path.with_suffix(".json.broken")
        with contextlib.suppress(OSError):
            path.replace(aside)
            return Remembered(), f"{path}: {error}; moved to {aside.name}"
        return Remembered(), f"{path}: {error}; the file is ignored"
    values: dict[str, Any] = {}
    problems = []
    for field in msgspec.structs.fields(Remembered):
        if field.name in found:
            try:
                values[field.name] = msgspec.convert(found[field.name], field.type)
            except msgspec.ValidationError as error:
                problems.append(f"`{field.name}`: {error}")
    problem = f"{path}: {'; '.join(problems)}; the rest is used" if problems else ""
    return Remembered(**values), problem


def remember(**changes: Any) -> str:
    """Remember these fields of `Remembered` from now on; says what went wrong, or nothing.

    The file is read again first: another interface may have written to it. Nobody who reads it
    ever sees half a file.
    """
    for name in changes:
        if name not in Remembered.__struct_fields__:
            raise TypeError(f"nothing is remembered under {name!r}")
    path = remembered_path()
    known, _ = recall()
    changed = msgspec.structs.replace(known, **changes)
    if changed == known:
        return ""
    try:
        # Keys of a newer version stay.
        content = _known(path) | msgspec.to_builtins(changed)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
    except OSError as error:
        return f"{path}: cannot be written, settings are not saved: {error.strerror or error}"
    except UnicodeError as error:
        return f"{path}: not everything can be written as UTF-8, settings are not saved: {error}"
    return ""


def remember_theme(name: str, depth: Depth) -> str:
    """Remember a theme for terminals of this kind."""
    known, _ = recall()
    return remember(themes={**known.themes, depth: name})


def _decoded(content: bytes) -> dict[str, Any]:
    """The file's keys.

    Raises:
        ValueError: if it is not a JSON object.
    """
    try:
        found = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"holds a {type(found).__name__}, expected an object")
    return found


def _known(path: Path) -> dict[str, Any]:
    try:
        return _decoded(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}


def _write(path: Path, content: bytes) -> None:
    """Put a file in the place of the one before, in one step."""
    handle, written = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(written).replace(path)
    except OSError:
        Path(written).unlink(missing_ok=True)
        raise
