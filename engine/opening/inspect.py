"""Checks a path or hub id before it is opened; as a command it prints JSON.

``python -P -m engine.opening.inspect SOURCE`` prints one `Inspection`.

Only headers are read: no weights, no pickle, no network, no tensor library. Problems are those that
opening would report, in the same words, without the wait.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from engine.checkpoint import list_layers, open_checkpoint, remarks
from engine.checkpoint.architecture import architecture_name
from engine.checkpoint.checkpoint import find_weights, read_config
from engine.checkpoint.companions import stored_note
from engine.checkpoint.files import missing_folder
from engine.checkpoint.gguf import is_gguf, open_gguf
from engine.demo import DEMO_PATH
from engine.errors import CheckpointError
from engine.model.config import refuse_other_models
from engine.model.source import HUB_ID
from engine.opening.hub import hub_cache, hub_folder
from engine.opening.inspection import Inspection

TOKENIZERS = ("tokenizer*", "vocab*", "*.model", "tekken.json", "merges.txt")
"""Files that identify a tokenizer; a checkpoint may also bring its own code."""


def inspect_headers(source: str, *, trust_remote_code: bool = False) -> Inspection:
    """Inspect ``source``: ``demo``, a folder, or a hub id. Problems are returned, never raised."""
    folder, note = _folder(source)
    if folder is None:
        return _nowhere(source)
    try:
        found = _headers(source, folder, trust_remote_code)
    except (CheckpointError, OSError) as error:
        name = _hub_name(source) if note else Path(source).name
        found = Inspection(
            source=source, name=name, path=str(folder), problem=str(error), advice=_instead(folder)
        )
        if note and not _offline() and _unfinished(folder):
            note, found = f"{note}; opening it downloads the rest", _without_problem(found)
    notes = "; ".join(part for part in (note, found.note) if part)
    return msgspec.structs.replace(found, note=notes)


def _folder(source: str) -> tuple[Path | None, str]:
    """The folder of ``source`` if it is on this machine; and a note if it is in the cache."""
    if source == "demo":
        return DEMO_PATH, ""
    path = Path(os.path.expanduser(source))
    try:
        if path.is_dir() or is_gguf(path):
            return path, ""
        if path.exists() or not _hub_name(source):
            return None, ""
    except (OSError, ValueError):  # too long for a path, or contains a null character
        return None, ""
    return _snapshot(source), "in the hub's cache"


def _hub_name(source: str) -> str:
    outside = source.startswith((".", "/", "~"))
    return source if not outside and HUB_ID.fullmatch(source) else ""


def _snapshot(repo: str) -> Path | None:
    """The cached snapshot that the hub's client would use: of ``main``, else the newest."""
    home = hub_folder() / f"models--{repo.replace('/', '--')}"
    try:
        commit = (home / "refs" / "main").read_text().strip()
        if commit and (home / "snapshots" / commit).is_dir():
            return home / "snapshots" / commit
    except (OSError, ValueError):
        pass  # a cache that was copied manually has no refs
    try:
        return max((home / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime)
    except (OSError, ValueError):
        return None


def _nowhere(source: str) -> Inspection:
    """No folder exists: what the source is instead, or a similar name that exists."""
    path = Path(os.path.expanduser(source))
    try:
        is_file = path.is_file()
    except (OSError, ValueError):
        is_file = False
    if not source.strip():
        return Inspection(source=source, problem="the name is empty: give a folder or a hub id")
    if is_file:
        return _a_file(source, path)
    if not _hub_name(source):
        advice = "" if os.path.exists(path) else _near(path)
        return Inspection(source=source, problem=missing_folder(source), advice=advice)
    near = difflib.get_close_matches(source, hub_cache(), n=1, cutoff=0.8)
    advice = f"the cache has {near[0]}" if near else ""
    if _offline():
        return Inspection(
            source=source,
            name=source,
            problem=f"{source} is not in the local cache and HF_HUB_OFFLINE forbids downloading it",
            advice=advice or "unset HF_HUB_OFFLINE, or give a folder",
        )
    note = "not a folder here, and not in the hub's cache: opening it downloads it"
    return Inspection(source=source, name=source, note=note, advice=advice)


def _a_file(source: str, path: Path) -> Inspection:
    problem = f"{source} is a file: give the folder that holds it together with its config.json"
    whole = (path.parent / "config.json").is_file()
    return Inspection(source=source, problem=problem, advice=f"open {path.parent}" if whole else "")


def _headers(source: str, folder: Path, trusted: bool) -> Inspection:
    """Inspect the headers of a folder.

    Raises:
        CheckpointError: the headers have a problem.
    """
    if is_gguf(folder):
        return _gguf(source, folder)
    config, _ = read_config(folder)
    refuse_other_models(folder / "config.json", config, trusted=trusted)
    _, _, pickled = find_weights(folder)
    found = _pickled(source, folder, config) if pickled else _safetensors(source, folder)
    own_code = bool(config.get("auto_map")) and trusted
    if not own_code and not any(next(folder.glob(each), None) for each in TOKENIZERS):
        return msgspec.structs.replace(
            found,
            problem=f"{folder} has no tokenizer, which is needed to measure perplexity",
            advice="copy the original's tokenizer.json into this folder",
        )
    return found


def _safetensors(source: str, folder: Path) -> Inspection:
    """Inspect what is not pickled: a folder, or a GGUF file."""
    checkpoint = open_checkpoint(folder)
    rows = list_layers(checkpoint)
    notes = remarks(checkpoint, rows)
    if (note := stored_note(checkpoint)) is not None and note not in notes:
        notes.insert(0, note)
    return Inspection(
        source=source,
        name="demo" if source == "demo" else checkpoint.name,
        path=str(folder),
        architecture=architecture_name(checkpoint.config),
        parameters=checkpoint.parameters,
        bytes=checkpoint.bytes,
        dtype=checkpoint.dtype,
        layers=len(rows),
        note="; ".join(notes),
    )


def _gguf(source: str, file: Path) -> Inspection:
    open_gguf(file).tokenizer()  # or say why there is none, before the model is loaded
    return _safetensors(source, file)


def _pickled(source: str, folder: Path, config: dict[str, Any]) -> Inspection:
    files, _, _ = find_weights(folder)
    return Inspection(
        source=source,
        name=_hub_name(source) or folder.name,
        path=str(folder),
        architecture=architecture_name(config),
        bytes=sum(file.stat().st_size for file in files),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or ""),
        note=f"{files[0].name} is a pickle: it is opened only if it holds only plain tensors",
        advice="convert it to safetensors, which opens faster and cannot run code",
    )


def _without_problem(found: Inspection) -> Inspection:
    return msgspec.structs.replace(found, problem="", advice="")


def _unfinished(folder: Path) -> bool:
    """Whether the cached snapshot lacks files that the hub's client would download."""
    try:
        read_config(folder)
        find_weights(folder)
    except CheckpointError:
        return True
    return False


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


# --- suggestions ---------------------------------------------------------------------------------


def _near(path: Path) -> str:
    """A folder with a similar name, where the path stops existing."""
    below = path.absolute()
    while not below.parent.is_dir():
        below = below.parent
    try:
        names = [each.name for each in below.parent.iterdir() if each.is_dir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(below.name, names, n=1, cutoff=0.6)
    return f"there is {below.parent / close[0]}" if close else f"{below.parent} exists"


def _instead(folder: Path) -> str:
    """A checkpoint inside a folder that is not one itself."""
    if (folder / "config.json").is_file():
        return ""
    try:
        inside = [*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")]
        newest = max(inside, key=lambda file: file.stat().st_mtime, default=None)
    except OSError:
        return ""
    return f"open {newest.parent}" if newest is not None else ""


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m engine.opening.inspect", description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--trust-remote-code", action="store_true")
    asked = parser.parse_args()
    found = inspect_headers(asked.source, trust_remote_code=asked.trust_remote_code)
    sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
