"""``qtui diagnose``."""

from __future__ import annotations

from typing import Annotated

import typer

from engine import protocol as p
from engine.report import documents, tables
from qtui.cli.exit import check_destination, publish, reporting_errors
from qtui.cli.options import JsonOption, ModelArgument, Shared, shares_options
from qtui.cli.run import run


@shares_options
def diagnose(
    model: ModelArgument,
    format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="F", help="whose damage to judge (default: the profile's)"
        ),
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
    markdown: Annotated[bool, typer.Option("--markdown", help="print Markdown")] = False,
    json: JsonOption = None,
    *,
    shared: Shared,
) -> None:
    """Verdict, findings, and the formats that help.

    Reads the weights, estimates every layer, and measures the worst five. The verdict says what the
    format costs everywhere, how much of it five layers cause, and the cheapest mix that takes half
    of it away. A finding names a layer, its evidence, and the cheapest known format that wins back
    half of what it costs; a clean model has none. With --fixes, the worst layers are tried in every
    format that may help: errors of weights and outputs, KL, size, and the serving kernels that take
    them.
    """
    with reporting_errors():
        settings, _ = shared.resolve()
        check_destination(json)
        outcome = run(model, settings, p.Diagnose(format or "", fixes))
        command = outcome.job.command
        assert isinstance(command, p.Diagnose)
        document = documents.diagnose_document(outcome.session, command.format, outcome.job)
        text = tables.diagnosis_markdown if markdown else tables.diagnosis_text
        publish(document, text, json)
