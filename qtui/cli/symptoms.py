"""``qtui symptoms``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engine import protocol as p
from engine.errors import UsageError
from engine.recipes.file import built_in, names_file
from engine.report import documents, tables
from qtui.cli.exit import check_destination, publish, reporting_errors
from qtui.cli.options import (
    FormatOption,
    JsonOption,
    ModelArgument,
    RecipeOption,
    Shared,
    located,
    shares_options,
)
from qtui.cli.recipe import check_recipe, with_recipe
from qtui.cli.run import run


@shares_options
def symptoms(
    model: ModelArgument,
    format: FormatOption = None,
    recipe: RecipeOption = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="prompts: one a line, or .jsonl with prompt or messages, id, topic, rephrases",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="a prompt; may be given several times"),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="write prompts by the tokenizer's chat template"),
    ] = False,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", metavar="N", min=1, help="new tokens, at most")
    ] = p.Sampling().new_tokens,
    temperature: Annotated[
        float,
        typer.Option(
            "--temperature", metavar="T", min=0.0, help="0 takes the most likely token each time"
        ),
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(
            "--top-p",
            metavar="P",
            min=0.0,
            max=1.0,
            help="choose from the most likely tokens that together have this probability",
        ),
    ] = 1.0,
    why: Annotated[
        bool,
        typer.Option(
            "--why",
            help="put layers back to their reference weights where the recipe shows symptoms, to "
            "find those that cure it; compare prompts that fail with others, inside the model",
        ),
    ] = False,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            metavar="FILE|NAMES",
            help="tasks to answer: .jsonl files of prompt, choices, answer; names of lm-eval's",
        ),
    ] = None,
    divergence: Annotated[
        bool,
        typer.Option(
            "--divergence",
            help="compare both at every position of the evaluation text: llama.cpp's KLD tables",
        ),
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="print Markdown")] = False,
    json: JsonOption = None,
    *,
    shared: Shared,
) -> None:
    """Prompts continued by the reference and by a recipe, side by side.

    Both take the same random numbers, so that a recipe that changes nothing writes the same text.
    For every prompt it shows the first token that differs, with what both would have written there.
    It counts loops, garbled text, one token only, early ends, refusals, another language and texts
    that do not end, in the recipe's texts and in the reference's. --why puts layers back to their
    reference weights on the prompts that show symptoms, one at a time and as attention and MLP of a
    block, and says which of them cure it, and which channels and heads differ there. --tasks has
    both answer questions: accuracy with its interval, and the answers that flip either way.
    """
    with reporting_errors():
        settings, _ = shared.resolve()
        check_recipe("symptoms", format, recipe)
        check_destination(json)
        given = tuple(prompt or ())
        if prompts is None and not given and not tasks and not divergence:
            raise UsageError(
                "qtui symptoms needs --prompts FILE, --prompt TEXT, --tasks FILE or --divergence"
            )
        if any(_is_no_text(each) for each in given):
            raise UsageError("--prompt is not UTF-8: write it into a file of that encoding")
        ask = with_recipe(
            recipe,
            p.FindSymptoms(
                prompts=given,
                file="" if prompts is None else str(prompts.expanduser().absolute()),
                divergence=divergence,
                tasks=tuple(map(located, named_tasks(tasks))),
                sampling=p.Sampling(new_tokens, temperature, top_p, chat),
                why=why,
                format=format or "kept",
            ),
        )
        called = recipe if recipe is None or names_file(recipe) else built_in(recipe)
        name = " ".join(each for each in (called, format) if each is not None)
        outcome = run(model, settings, ask, of=p.FindSymptoms)
        document = documents.symptoms_document(outcome.session, name, outcome.formats, outcome.job)
        text = tables.symptoms_markdown if markdown else tables.symptoms_text
        publish(document, text, json)


def named_tasks(given: str | None) -> tuple[str, ...]:
    """Tasks separated by commas, each once."""
    words = [word.strip() for word in (given or "").split(",")]
    return tuple(dict.fromkeys(word for word in words if word))


def _is_no_text(given: str) -> bool:
    """Whether bytes were typed that are no characters, which Python has as half ones."""
    return any("\ud800" <= each <= "\udfff" for each in given)
