"""Export targets: each is declared once, in `engine.export.targets` or by a plugin.

A declaration says what a target can express, in text and numbers, so that the command line can ask
before any tensor library is imported. Its `writer` names the half that writes files, an
`engine.export.writer.Writer`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from engine.errors import UsageError
from engine.formats.grammar import Format
from engine.plugins import load_plugins

Expresses: TypeAlias = Callable[[Format, Sequence[int], str], str | None]
"""Why a format cannot be written for a weight of this shape, in a checkpoint of this dtype (by
torch's name); None if it can."""


class Target(msgspec.Struct, frozen=True):
    """A kind of file or folder that a recipe is exported to."""

    name: str
    """Value of ``--to``."""
    help: str
    """One line: what it is, and what loads it."""
    why_not_expressed: Expresses
    writer: str | Callable[[], object]
    """``module:NAME`` of an `engine.export.writer.Writer`, or of a function that returns one."""


_TARGETS: dict[str, Target] = {}


def register_target(target: Target) -> None:
    """Register a target for ``--to``, its help and its errors.

    Raises:
        ValueError: a target with this name exists.
    """
    _load_ours()
    if target.name in _TARGETS:
        raise ValueError(f"there is an export target {target.name!r} already")
    _TARGETS[target.name] = target


def targets() -> list[Target]:
    """All targets, ours first."""
    _load_ours()
    load_plugins()
    return list(_TARGETS.values())


def target_named(name: str) -> Target:
    """The target with this name.

    Raises:
        UsageError: no target has this name; the message lists all.
    """
    for target in targets():
        if target.name == name:
            return target
    raise UsageError(f"unknown export target {name!r}: known are {listed()}")


def listed() -> str:
    """All targets with their descriptions, to end a sentence: ``checkpoint (…), …``."""
    return ", ".join(f"{target.name} ({target.help})" for target in targets())


def _load_ours() -> None:
    # By name: those modules import this one.
    importlib.import_module("engine.export.targets")
