"""``qtui triage``."""

from __future__ import annotations

from typing import Annotated

import typer

from engine import protocol as p
from engine.errors import UsageError
from engine.report import documents, tables
from qtui.cli import headless
from qtui.cli.exit import check_destination, publish, reporting_errors
from qtui.cli.options import (
    FormatsOption,
    JsonOption,
    ModelArgument,
    Shared,
    shares_options,
    split_formats,
)
from qtui.cli.run import run


@shares_options
def triage(
    model: ModelArgument,
    formats: FormatsOption = None,
    activations: Annotated[
        bool,
        typer.Option("--activations", help="inputs and outputs too: loads the model, one pass"),
    ] = False,
    histogram: Annotated[
        str | None,
        typer.Option(
            "--histogram",
            metavar="LAYER",
            help="add a layer's histogram to the JSON, with the grid of the first format",
        ),
    ] = None,
    bins: Annotated[
        int, typer.Option("--bins", metavar="N", min=1, max=100_000, help="bins of --histogram")
    ] = 120,
    experts: Annotated[
        str | None,
        typer.Option(
            "--experts", metavar="LAYER", help="add every expert of a fused layer to the JSON"
        ),
    ] = None,
    json: JsonOption = None,
    *,
    shared: Shared,
) -> None:
    """Outliers, faults and errors of every layer's weights.

    Reads only the files: no forward pass, one layer in memory at a time. With --activations the
    model runs once over the calibration text: inputs and outputs of each layer, outlier
    channels, massive tokens, tokens of each expert.
    """
    with reporting_errors():
        settings, _ = shared.resolve()
        if (histogram or experts) and json is None:
            raise UsageError(
                "--histogram and --experts appear only in JSON: add --json PATH or --json -"
            )
        check_destination(json)
        wanted = split_formats(formats)
        ask = p.Triage(wanted or settings.formats, activations)
        questions: list[headless.Question] = []
        if histogram:
            questions.append(p.AskHistogram(histogram, bins, (wanted or ("",))[0]))
        if experts:
            questions.append(p.AskExperts(experts))
        outcome = run(model, settings, ask, questions)
        document = documents.triage_document(outcome.session, outcome.job, outcome.answers)
        publish(document, tables.triage_text, json)
