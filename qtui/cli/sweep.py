"""``qtui sweep``."""

from __future__ import annotations

from engine.report import documents, tables
from engine.workers.asked import parse_workers
from engine.workers.cluster import reach
from qtui.cli.exit import check_destination, publish, reporting_errors
from qtui.cli.options import (
    ByOption,
    DirectionOption,
    DrawsOption,
    ExactOption,
    FormatsOption,
    JsonOption,
    ModelArgument,
    Shared,
    WorkersOption,
    shares_options,
    split_formats,
    sweep_asked,
    with_draws,
    with_workers,
)
from qtui.cli.run import run


@shares_options
def sweep(
    model: ModelArgument,
    formats: FormatsOption = None,
    exact: ExactOption = "all",
    direction: DirectionOption = "degrade",
    by: ByOption = "layer",
    draws: DrawsOption = None,
    workers: WorkersOption = None,
    json: JsonOption = None,
    *,
    shared: Shared,
) -> None:
    """Sensitivity of every layer.

    Estimates every layer in every format from a few passes, then measures layers exactly, worst
    first. Degrade: how perplexity and KL change when only that layer is quantised. Restore: what
    is regained when all layers are quantised but that one.
    """
    with reporting_errors():
        settings, _ = shared.resolve()
        settings = with_workers(with_draws(settings, draws), workers)
        reach(parse_workers(settings.workers).cluster)  # before minutes of loading
        check_destination(json)
        wanted = split_formats(formats)
        # With --formats only those are wanted.
        ask = sweep_asked(wanted or settings.sweep_formats, direction, exact, by, only=bool(wanted))
        outcome = run(model, settings, ask)
        document = documents.sweep_document(
            outcome.session, outcome.formats, ask.direction, outcome.job, ask.by, not wanted
        )
        publish(document, tables.sweep_text, json)
