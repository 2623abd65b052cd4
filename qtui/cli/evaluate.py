"""``qtui eval``."""

from __future__ import annotations

from engine import protocol as p
from engine.recipes.file import built_in, names_file
from engine.report import documents, tables
from qtui.cli.exit import check_destination, publish, reporting_errors
from qtui.cli.options import (
    FormatOption,
    JsonOption,
    ModelArgument,
    RecipeOption,
    Shared,
    shares_options,
)
from qtui.cli.recipe import check_recipe, with_recipe
from qtui.cli.run import run


@shares_options
def evaluate(
    model: ModelArgument,
    format: FormatOption = None,
    recipe: RecipeOption = None,
    json: JsonOption = None,
    *,
    shared: Shared,
) -> None:
    """Perplexity and KL of a recipe.

    --recipe takes a file (its name has a suffix or a slash) or the name of a built-in recipe.
    Built in are llama.cpp's mixes Q2_K, Q3_K_S, Q3_K_M, Q3_K_L, Q4_0, Q4_K_S, Q4_K_M, Q5_K_S,
    Q5_K_M, Q6_K and Q8_0, which include head and embedding; IQ2_XXS, IQ2_XS, IQ2_S, IQ2_M, IQ3_XXS,
    IQ3_XS, IQ3_S and IQ3_M, which have an importance matrix too; and first-last, which gives the
    first and the last block a better format than the rest of the body, whose format --format F sets
    (default: int4-g128).
    """
    with reporting_errors():
        settings, _ = shared.resolve()
        check_recipe("eval", format, recipe)
        check_destination(json)
        ask = with_recipe(recipe, p.Evaluate(format=format or "kept"))
        called = recipe if recipe is None or names_file(recipe) else built_in(recipe)
        name = " ".join(given for given in (called, format) if given is not None)
        outcome = run(model, settings, ask)
        assert outcome.score is not None
        document = documents.eval_document(
            outcome.session, outcome.score, name, outcome.formats, outcome.job
        )
        publish(document, tables.eval_text, json)
