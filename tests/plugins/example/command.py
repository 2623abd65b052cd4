"""A command: ``qtui count MODEL``."""

from __future__ import annotations

from typing import Annotated

import typer

from qtui.cli.exit import check_destination, publish, reporting_errors
from qtui.cli.options import JsonOption, ModelArgument, Shared, shares_options
from qtui.cli.run import run
from tests.plugins.example.job import CountWeights, WeightCounts


def _table(counts: WeightCounts) -> str:
    return "".join(f"{kind:<16} {count:>14,}\n" for kind, count in counts.weights.items())


@shares_options
def count(
    model: ModelArgument,
    kinds: Annotated[
        str, typer.Option("--kinds", metavar="A,B", help="kinds of layers; all if not given")
    ] = "",
    json: JsonOption = None,
    *,
    shared: Shared,
) -> None:
    """Count the weights of every kind of layer."""
    with reporting_errors():
        settings, _ = shared.resolve()
        check_destination(json)
        asked = CountWeights(tuple(kinds.split(",")) if kinds else ())
        outcome = run(model, settings, asked)
        publish(outcome.job.read(WeightCounts), _table, json)
