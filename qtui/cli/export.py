"""``qtui export``."""

from __future__ import annotations

from typing import Annotated

import typer

from engine import protocol as p
from engine.errors import UsageError
from engine.export.target import listed, target_named, targets
from engine.report import documents, tables
from qtui.cli import headless
from qtui.cli.exit import check_destination, publish, reporting_errors
from qtui.cli.options import (
    FormatOption,
    JsonOption,
    ModelArgument,
    RecipeOption,
    Shared,
    expanded,
    not_yet,
    shares_options,
)
from qtui.cli.recipe import calibrates, check_recipe, with_recipe
from qtui.cli.run import run


@shares_options
def export(
    model: ModelArgument,
    format: FormatOption = None,
    recipe: RecipeOption = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="TARGET",
            help="; ".join(f"{target.name}: {target.help}" for target in targets()),
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="PATH", help="the folder or file to write"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace what an earlier export wrote")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check", help="load it with transformers before it counts as done"
        ),
    ] = True,
    nearest: Annotated[
        bool,
        typer.Option(
            "--nearest", help="give layers that the target cannot hold the nearest format it can"
        ),
    ] = False,
    json: JsonOption = None,
    *,
    shared: Shared,
) -> None:
    """Write a recipe as a checkpoint, or in the words of another quantisation tool.

    --to checkpoint writes a folder, and --to gguf a file for llama.cpp, with exactly the weights
    that were measured. Only the files are read, one layer at a time; formats with +gptq load the
    model and calibrate as qtui eval does with the same options. The folder appears only once it is
    complete and transformers has loaded it, a GGUF file once every weight was read back from it;
    for programs that load what transformers does not, leave that out with --no-check. Every other
    target is one file that tells a tool which layer to quantise how, by exact names; the tool does
    the quantising. Layers that a target cannot hold are listed before any work, each with the
    nearest format that it can, which --nearest takes.
    """
    with reporting_errors(kept=headless.NOT_WHOLE):
        settings, _ = shared.resolve()
        check_recipe("export", format, recipe)
        target = _checked(to)
        if not output:
            raise UsageError("qtui export needs -o PATH, the folder or file to write")
        check_destination(json)
        # The engine may run in another folder.
        written = p.Export(
            out=str(expanded(output).absolute()),
            format=format or "kept",
            to=target,
            overwrite=overwrite,
            check=check,
            nearest=nearest,
        )
        ask = with_recipe(recipe, written)
        solves = target_named(target).words is None and calibrates(format, recipe)
        outcome = run(model, settings, ask, of=p.Export, calibrates=solves)
        assert outcome.exported is not None
        document = documents.export_document(
            outcome.session, outcome.exported, outcome.formats, outcome.job
        )
        publish(document, tables.export_text, json)


def _checked(to: str | None) -> str:
    """Check that the target exists."""
    if to is None:
        raise UsageError(f"qtui export needs --to TARGET, one of {listed()}")
    if to not in {target.name for target in targets()}:
        raise not_yet(f"--to {to}", f"targets are {listed()}")
    return to
