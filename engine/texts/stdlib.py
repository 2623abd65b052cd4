"""This machine's Python standard library as text: the demo is trained and evaluated on it.

Modules are split by a hash of their name, so that the same modules are held out on every machine
and with every Python version. Nothing here imports a model library.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Split = Literal["train", "held-out"]

HELD_OUT_ONE_IN = 16
_SKIPPED = frozenset(
    # Tests and bundled copies are not the library; `encodings` holds tables of code points.
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings"}
    | {"ensurepip", "_bundled", "lib2to3", "turtledemo", "pydoc_data"}
)


def name_hash(name: str) -> int:
    """First 32 bits of SHA-256 of a module's dotted name."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)


def is_held_out(name: str) -> bool:
    """Whether a module, by its dotted name, was held out of the demo's training text."""
    return name_hash(name) % HELD_OUT_ONE_IN == 0


def modules(split: Split, root: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield ``(dotted name, source)`` of one side of the split, in the order of the name's hash.

    The names alone fix the order, which mixes packages, so that a short prefix is varied.
    Modules that cannot be decoded are skipped.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    found: list[tuple[int, str, Path]] = []
    for folder, below, files in os.walk(root):
        below[:] = [part for part in below if part not in _SKIPPED and part[:7] != "config-"]
        package = Path(folder).relative_to(root).parts
        for file in files:
            if not file.endswith(".py"):
                continue
            name = ".".join((*package, file.removesuffix(".py")))
            if is_held_out(name) == (split == "held-out"):
                found.append((name_hash(name[::-1]), name, Path(folder, file)))
    for _, name, path in sorted(found):
        try:
            with tokenize.open(path) as stream:
                source = stream.read()
        except (SyntaxError, UnicodeDecodeError, OSError):
            continue
        if source.strip():
            yield name, source


def topics(split: Split) -> Iterator[tuple[str, str]]:
    """Yield ``(topic, prose)`` of ``pydoc``'s language reference, split like the modules."""
    try:
        from pydoc_data.topics import topics as texts
    except ImportError:  # a Python built without its documentation
        return
    for name in sorted(texts, key=lambda name: name_hash(name[::-1])):
        if is_held_out(f"pydoc.{name}") == (split == "held-out"):
            yield name, texts[name]
