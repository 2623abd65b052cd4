"""The recipe of a command: ``--format``, ``--recipe``, and the layers a recipe file names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from engine import protocol as p
from engine.errors import UsageError
from engine.formats.catalogue import KEPT
from engine.formats.grammar import needs_calibration, parse_format
from engine.recipes.file import built_in, names_file, read_recipe
from engine.recipes.mixes import FIRST_LAST, body_format
from engine.session import Session
from qtui.cli.exit import print_error

OfRecipe = TypeVar(
    "OfRecipe", p.Evaluate, p.Export, p.MeasureErrors, p.FindSymptoms, p.MeasureTexts
)


def check_recipe(command: str, format: str | None, recipe: str | None) -> None:
    """Check that exactly one recipe was given (``first-last`` may have a format too)."""
    both = format is not None and recipe is not None
    if both and not names_file(str(recipe)) and built_in(str(recipe)) == FIRST_LAST:
        return
    if both or (format is None and recipe is None):
        raise UsageError(
            f"qtui {command} needs either --format F or --recipe FILE|NAME; only --recipe "
            f"{FIRST_LAST} takes both"
        )


def calibrates(format: str | None, recipe: str | None) -> bool:
    """Whether a format, or one of a recipe, needs calibration inputs."""
    formats = [format]
    if recipe is not None and names_file(recipe):
        read = read_recipe(Path(recipe).expanduser())
        formats += [read.default, *(held for _, held in read.lines)]
        formats.append(body_format(read.recipe) if read.recipe else None)
    elif recipe is not None:
        formats.append(body_format(recipe))
    return any(needs_calibration(parse_format(each)) for each in formats if each and each != KEPT)


def with_recipe(given: str | None, command: OfRecipe) -> OfRecipe | Callable[[Session], OfRecipe]:
    """The command with a recipe, by its file or its name."""
    if given is None:
        return command
    if names_file(given):
        return _from_file(Path(given).expanduser(), command)
    return msgspec.structs.replace(command, recipe=built_in(given))


def _from_file(path: Path, command: OfRecipe) -> Callable[[Session], OfRecipe]:
    """The command with the recipe of a file, resolved once the layers are known."""
    recipe = read_recipe(path)

    def ask(session: Session) -> OfRecipe:
        name = session.checkpoint.name if session.checkpoint is not None else session.source
        if recipe.checkpoint not in (None, name, session.source):
            print_error(f"{path} was written for {recipe.checkpoint} and is used on {name}")
        return msgspec.structs.replace(
            command, format=recipe.default, layers=recipe.resolve(session), recipe=recipe.recipe
        )

    return ask
