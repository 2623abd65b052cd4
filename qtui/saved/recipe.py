"""The recipe as a file that `engine.recipes.file` reads back to the same formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.recipes.file import SCHEMA
from engine.recipes.shorten import shortened
from engine.session import Session, predict
from qtui.views.reproduce import command
from qtui.views.text import printable

if TYPE_CHECKING:
    from qtui.saved.view import View


def recipe_toml(view: View, path: Path) -> tuple[str, str]:
    """The recipe with patterns where they are shorter, and the command that measures it.

    Args:
        view: whose session has the recipe.
        path: where it is going to be; the command names it.

    Returns:
        The file's text and the command.
    """
    session = view.session
    measures = command(session.settings, view.source, "eval", ["--recipe", str(path)])
    verb = "is" if len(session.changed) == 1 else "are"
    many = f"{len(session.changed)} of {len(session.layers.names)} layers {verb} changed"
    said = [many, measures]
    if (score := session.score()) is not None and score.done:
        said.insert(
            1,
            f"measured: ppl {score.ppl!r}, kl {score.kl!r} nats per token, "
            f"{score.bits_per_weight!r} bits per weight, {score.bytes} bytes",
        )
    elif (predicted := predict(session)) is not None and not predicted.vague:
        without = f", without {predicted.missing} unknown" if predicted.missing else ""
        filled = f", {predicted.filled} by weight error" if predicted.filled else ""
        said.insert(
            1,
            f"predicted from single effects: ppl {predicted.ppl!r}, "
            f"kl {predicted.kl!r} nats per token{without}{filled}",
        )
    return recipe_file(session, session.changed, said, _checkpoint(view)), measures


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


def _checkpoint(view: View) -> str:
    read = view.session.checkpoint
    return read.name if read is not None else view.source
