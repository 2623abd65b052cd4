"""The recipe that a command names: a format for the body, a built-in recipe, layer formats."""

from __future__ import annotations

from typing import TypeAlias

from engine import protocol as p
from engine.recipes.changes import canonical, resolve
from engine.recipes.mixes import body_format, recipe_named
from engine.session import Session

OfRecipe: TypeAlias = p.Evaluate | p.Export
Named: TypeAlias = p.MeasureErrors | p.FindSymptoms | p.MeasureTexts


def check_given(command: OfRecipe) -> None:
    """Check a command's recipe as far as possible before its layers are known.

    Raises:
        FormatError: a format that does not parse or is not built yet.
        UsageError: no built-in recipe has this name.
    """
    if command.recipe:
        recipe_named(command.recipe)
    canonical([held for held in formats_given(command) if held != "kept"])


def formats_given(command: OfRecipe) -> list[str]:
    """Every format that the command names, ``kept`` among them, and that of a mix's body."""
    mix = body_format(command.recipe) if command.recipe else ""
    return [command.format, *command.layers.values(), *([mix] if mix else [])]


def given_recipe(
    session: Session, command: OfRecipe, *, tied: bool
) -> tuple[dict[str, str], list[p.Fallback]]:
    """The layers that are not kept, with canonical formats; see `engine.recipes.changes.resolve`.

    Args:
        session: whose layers it is for.
        command: names the recipe.
        tied: whether head and embedding are one tensor.
    """
    return resolve(session, command.format, command.layers, command.recipe, tied=tied)


def names_recipe(command: Named) -> bool:
    """Whether a command names a recipe; else it is about the session's own."""
    return bool(command.format or command.layers or command.recipe)


def as_evaluated(command: Named) -> p.Evaluate:
    """The recipe that a command names, as it would be evaluated."""
    return p.Evaluate(command.format or "kept", command.layers, command.recipe)
