"""A recipe as the text of a file that `engine.recipes.file` reads back to the same formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.recipes.file import SCHEMA
from engine.recipes.shorten import shortened
from engine.report.characters import printable
from engine.session import Session


def recipe_file(
    session: Session, recipe: Mapping[str, str], said: Sequence[str], checkpoint: str
) -> str:
    """A recipe as the text of a file.

    Args:
        session: whose layers they are.
        recipe: formats of the layers that are not kept.
        said: lines of comment at the top.
        checkpoint: the name of the checkpoint.
    """
    default, named = shortened(session, recipe)
    lines = [f"# {printable(line)}" for line in said]
    lines += [f"schema = {basic(SCHEMA)}", f"checkpoint = {basic(checkpoint)}"]
    lines += [f"default = {basic(default)}", "", "[layers]"]
    lines += [f"{basic(name)} = {basic(held)}" for name, held in named]
    return "\n".join([*lines, ""])


def basic(text: str) -> str:
    """A TOML basic string: what cannot be printed is escaped."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    if char.isprintable():
        return char
    return f"\\u{ord(char):04X}" if ord(char) < 0x10000 else f"\\U{ord(char):08X}"
