"""``qtui diagnose``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec
import typer

from engine import protocol as p
from engine.errors import UsageError
from engine.export.serving import serving
from engine.export.target import listed, targets
from engine.recipes.given import as_evaluated, given_recipe
from engine.report import documents, tables
from engine.session import Session
from qtui.cli.exit import check_destination, publish, reporting_errors
from qtui.cli.options import JsonOption, ModelArgument, Shared, shares_options
from qtui.cli.recipe import with_recipe
from qtui.cli.run import run


@shares_options
def diagnose(
    model: ModelArgument,
    format: Annotated[
        str | None,
        typer.Option("--format", metavar="F", help="the format to judge (default: the profile's)"),
    ] = None,
    fixes: Annotated[
        int,
        typer.Option(
            "--fixes",
            metavar="N",
            min=0,
            help="try other formats on the N worst layers, and measure those that matter",
        ),
    ] = 0,
    errors: Annotated[
        bool,
        typer.Option(
            "--errors", help="errors of outputs, drift of blocks and attention too; see --recipe"
        ),
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="FILE|NAME",
            help="the recipe that --errors is about (default: the format in the whole body)",
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="TARGET",
            help="export target that must hold the verdict's mix (default: some serving kernel)",
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="print Markdown")] = False,
    json: JsonOption = None,
    *,
    shared: Shared,
) -> None:
    """Verdict, findings, and the formats that help.

    Reads the weights, estimates every layer, and measures the worst five. The verdict says what the
    format costs everywhere, how much of it five layers cause, and the cheapest mix that takes half
    of it away, of formats that some serving kernel takes or, with --to, that a target holds. A
    finding names a layer, its evidence, and the cheapest known format that wins back half of what
    it costs; a clean model has none.

    With --fixes, the worst layers are tried in every format that may help: errors of weights and
    outputs, KL, size, and the serving kernels that take them.

    --errors runs a recipe and the unchanged model side by side, block by block: how much each
    layer's outputs err, how much each block adds to the drift of the hidden state, and which
    attention heads look elsewhere.
    """
    with reporting_errors():
        settings, _ = shared.resolve()
        if recipe is not None and not errors:
            raise UsageError("--recipe is whose errors --errors measures: add --errors")
        if to is not None and to not in {target.name for target in targets()}:
            raise UsageError(f"--to {to!r}: targets are {listed()}")
        check_destination(json)
        ask = p.Diagnose(format or "", fixes=fixes)
        asked = _asked(ask, recipe) if errors else ask
        outcome = run(model, settings, asked, of=p.Diagnose)
        command, session = outcome.job.command, outcome.session
        assert isinstance(command, p.Diagnose)
        measured = None
        if command.errors is not None:
            given = as_evaluated(command.errors)
            measured, _ = given_recipe(session, given, tied=session.tied)
        document = documents.diagnose_document(
            session, command.format, outcome.job, measured, serving(session, to or "")
        )
        text = tables.diagnosis_markdown if markdown else tables.diagnosis_text
        publish(document, text, json)


def _asked(command: p.Diagnose, recipe: str | None) -> p.Diagnose | Callable[[Session], p.Diagnose]:
    """The command with the errors of a recipe, by its file or its name."""
    errors = with_recipe(recipe, p.MeasureErrors())
    if not callable(errors):
        return msgspec.structs.replace(command, errors=errors)
    resolve = errors
    return lambda session: msgspec.structs.replace(command, errors=resolve(session))
