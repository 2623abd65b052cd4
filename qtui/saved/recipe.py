"""The recipe as a file that `engine.recipes.file` reads back to the same formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.report.recipe_text import recipe_file
from engine.report.reproduce import command
from engine.session import predict

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


def _checkpoint(view: View) -> str:
    read = view.session.checkpoint
    return read.name if read is not None else view.source
