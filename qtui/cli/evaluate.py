"""``qtui eval``."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import msgspec
import typer

from engine import protocol as p
from engine.recipes.file import built_in, names_file
from engine.report import documents, tables
from qtui.cli.exit import check_destination, publish, reporting_errors
from qtui.cli.headless import Ask
from qtui.cli.options import (
    FormatOption,
    JsonOption,
    ModelArgument,
    RecipeOption,
    Shared,
    located_text,
    shares_options,
)
from qtui.cli.recipe import check_recipe, with_recipe
from qtui.cli.run import run


@shares_options
def evaluate(
    model: ModelArgument,
    format: FormatOption = None,
    recipe: RecipeOption = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="FILE|DATASET[:COLUMN]",
            help="evaluation text; of several, each has a column",
        ),
    ] = None,
    by_position: Annotated[
        bool,
        typer.Option("--by-position", help="figures by the number of tokens before a prediction"),
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="print Markdown")] = False,
    json: JsonOption = None,
    *,
    shared: Shared,
) -> None:
    """Perplexity and KL of a recipe.

    --recipe takes a file (its name has a suffix or a slash) or the name of a built-in recipe.
    Built in are llama.cpp's mixes Q2_K, Q3_K_S, Q3_K_M, Q3_K_L, Q4_0, Q4_K_S, Q4_K_M, Q5_K_S,
    Q5_K_M, Q6_K and Q8_0, which include head and embedding; IQ2_XXS, IQ2_XS, IQ2_S, IQ2_M, IQ3_XXS,
    IQ3_XS, IQ3_S and IQ3_M, which use an importance matrix too; and first-last, which gives the
    first and the last block a better format than the rest of the body, whose format --format F sets
    (default: int4-g128).

    --text may be given several times, for text of several domains: the first is evaluated as usual,
    and a table gives perplexity and KL on each. --by-position gives them by the number of tokens
    before a prediction. Both need the whole model in memory.
    """
    with reporting_errors():
        settings, _ = shared.resolve()
        texts = tuple(dict.fromkeys(map(located_text, text or ())))
        settings = msgspec.structs.replace(settings, text=texts[0] if texts else settings.text)
        check_recipe("eval", format, recipe)
        check_destination(json)
        kind: type[p.MeasureTexts | p.Evaluate] = p.Evaluate
        ask: Ask = with_recipe(recipe, p.Evaluate(format=format or "kept"))
        if by_position or len(texts) > 1:
            kind = p.MeasureTexts
            ask = with_recipe(recipe, p.MeasureTexts(format=format or "kept", texts=texts))
        called = recipe if recipe is None or names_file(recipe) else built_in(recipe)
        name = " ".join(given for given in (called, format) if given is not None)
        outcome = run(model, settings, ask, of=kind)
        assert outcome.score is not None
        document = documents.eval_document(
            outcome.session, outcome.score, name, outcome.formats, outcome.job
        )
        print_as = tables.eval_markdown if markdown else tables.eval_text
        publish(document, partial(print_as, positions=by_position), json)
