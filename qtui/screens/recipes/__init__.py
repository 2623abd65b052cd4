"""Recipes tried: their sizes and scores, what two of them have different, the way back to one."""

from __future__ import annotations

from qtui.actions import Action
from qtui.screens.moving import steps
from qtui.screens.session_screen import SessionScreen
from qtui.screens.spec import ScreenContext, ScreenSpec


def make(context: ScreenContext) -> SessionScreen:
    """The list of recipes with what runs its actions."""
    from qtui.screens.recipes.actions import RecipesActions
    from qtui.screens.recipes.screen import Recipes

    screen = Recipes(context.glyphs)
    RecipesActions(screen, context.events)
    return screen


SCREEN = ScreenSpec(
    Action("recipes", "R", "Recipes tried", "Recipe", "recipes", rank=95, place=85),
    make,
    (
        *steps("recipes"),
        Action("recipes.take", "enter", "Go back to it", "Recipe", "take it", rank=1, place=1),
        Action(
            "recipes.compare", "space", "Compare others with it", "Recipe", "compare", rank=2,
            place=2,
        ),
        Action("recipes.name", "e", "Name it", "Recipe", "name", rank=3, place=3),
        Action("recipes.down_apart", "right_square_bracket", "Differences: down", "View"),
        Action("recipes.up_apart", "left_square_bracket", "Differences: up", "View"),
    ),
)  # fmt: skip
