"""Parse and judge what is typed to export: ``export TARGET PATH[!]``."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from engine import protocol as p
from engine.errors import UsageError
from engine.export.held import refused, weights_of
from engine.export.target import Target, target_named, targets
from engine.session import Session
from qtui.saved.request import QUOTES
from qtui.views.text import printable, short_name

WORD = "export"


class ExportRequest(msgspec.Struct, frozen=True):
    """What was typed, taken apart."""

    target: Target
    path: Path
    """Absolute."""
    replace: bool


def asks_export(text: str) -> bool:
    """Whether a text is about an export rather than something to save."""
    return text.lstrip().partition(" ")[0] == WORD


def read_export(text: str, chosen: str) -> ExportRequest:
    """``export [TARGET] PATH[!]`` as its parts.

    Args:
        text: as typed.
        chosen: the name of the target that the workbench shows, which need not be typed.

    Raises:
        UsageError: no target or no path is named, or the path cannot be one.
    """
    rest = text.strip().removeprefix(WORD).strip()
    first, _, path = rest.partition(" ")
    if first in {target.name for target in targets()}:
        name, path = first, path.strip()
    elif chosen:
        name, path = chosen, rest
    else:
        near = f": {first!r} is no target" if first else ""
        raise UsageError(f"name a target and a path{near}")
    replace = path.endswith("!")
    path = path.removesuffix("!").rstrip()
    if path[:1] in QUOTES:
        path = path[1:].removesuffix(path[0])
    target = target_named(name)
    if not path or "\0" in path:
        what = "file" if target.is_file else "folder"
        raise UsageError(f"name the {what} to write for {name}")
    try:
        return ExportRequest(target, Path(path).expanduser().absolute(), replace)
    except RuntimeError as error:
        raise UsageError(f"{printable(path)}: cannot be a path: {error}") from error


def judge_export(text: str, chosen: str, session: Session) -> tuple[bool, str]:
    """Whether an export can begin, and what it would write or what is wrong."""
    try:
        asked = read_export(text, chosen)
    except UsageError as error:
        return False, str(error)
    shown, target = printable(str(asked.path)), asked.target
    if not session.changed:
        return False, "no layer is changed: there is no recipe to export"
    if not os.path.isdir(asked.path.parent):  # also of names that are too long
        return False, f"{shown}: there is no folder {printable(str(asked.path.parent))}"
    if os.path.lexists(asked.path) and not asked.replace:
        return False, f"{shown} exists: add ! to replace it"
    found = refused(target, weights_of(session), session.changed)
    if found:
        layer, why = next(iter(found.items()))
        few = "1 layer" if len(found) == 1 else f"{len(found)} layers"
        block = session.layers.blocks[session.index[layer]]
        short = printable(short_name(layer, block, 0)).strip()
        return False, f"{target.name} cannot hold {few}: {short}: {why}"
    return True, f"the recipe for {target.name} to {shown}"


def complete_export(text: str, chosen: str, name: str) -> list[tuple[str, str, bool]]:
    """Completions: the targets, each with a file's name.

    Args:
        text: as typed.
        chosen: the target that the workbench shows, offered first.
        name: of the checkpoint.
    """
    typed = text.strip().removeprefix(WORD).strip()
    found = sorted(targets(), key=lambda target: target.name != chosen)
    return [
        (f"{WORD} {target.name} {name}-{target.name}{target.ending}", target.help, False)
        for target in found
        if target.name.startswith(typed)
    ]


def export_command(asked: ExportRequest, session: Session) -> p.Export:
    """The command that writes the session's recipe."""
    return p.Export(
        out=str(asked.path),
        layers=dict(session.changed),
        to=asked.target.name,
        overwrite=asked.replace,
    )
