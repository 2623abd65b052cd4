"""``qtui imatrix``."""

from __future__ import annotations

from typing import Annotated

import typer

from engine import protocol as p
from engine.errors import UsageError
from engine.report import documents, tables
from qtui.cli.exit import check_destination, publish, reporting_errors
from qtui.cli.options import JsonOption, ModelArgument, Shared, expanded, shares_options
from qtui.cli.run import run


@shares_options
def imatrix(
    model: ModelArgument,
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="the file to write; .dat for the older form"
        ),
    ] = None,
    head: Annotated[bool, typer.Option("--head", help="include the head (output.weight)")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace an existing file")
    ] = False,
    json: JsonOption = None,
    *,
    shared: Shared,
) -> None:
    """Write the importance of every layer's inputs, as llama.cpp's llama-imatrix does.

    It is the mean square of each input over the calibration text, by which +imatrix weights errors:
    llama-quantize --imatrix FILE then writes what qtui measured with the same options.
    """
    with reporting_errors(kept="nothing was written"):
        settings, _ = shared.resolve()
        if not output:
            raise UsageError("qtui imatrix needs -o FILE, the file to write")
        check_destination(json)
        written = p.WriteImatrix(
            out=str(expanded(output).absolute()), head=head, overwrite=overwrite
        )
        outcome = run(model, settings, written)
        publish(documents.imatrix_document(outcome.session, outcome.job), tables.imatrix_text, json)
