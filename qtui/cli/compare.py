"""``qtui compare``."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from engine import protocol as p
from engine.errors import UsageError
from engine.report import documents, tables
from qtui.cli.exit import check_destination, publish, reporting_errors
from qtui.cli.options import JsonOption, Shared, located_model, shares_options
from qtui.cli.run import run


@shares_options
def compare(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REF", help="the original checkpoint; - for none: what the files alone show"
        ),
    ],
    quantised: Annotated[
        list[str],
        typer.Argument(metavar="QUANT…", help="finished checkpoints of the same model"),
    ],
    restore: Annotated[
        int,
        typer.Option(
            "--restore",
            metavar="N",
            min=0,
            help="put the N layers of each with the largest errors back to their original weights, "
            "one at a time, and measure what that wins",
        ),
    ] = 0,
    weights: Annotated[
        bool,
        typer.Option("--weights", help="compare the files alone: no model is loaded"),
    ] = False,
    logits: Annotated[
        str,
        typer.Option(
            "--logits",
            metavar="FILE",
            help="a file of llama-perplexity --kl-divergence-base: its tokens and probabilities "
            "are the reference, and the original is not run",
        ),
    ] = "",
    save_logits: Annotated[
        str,
        typer.Option(
            "--save-logits",
            metavar="FILE",
            help="write the original's probabilities on the windows as llama-perplexity "
            "--kl-divergence-base does",
        ),
    ] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="print Markdown")] = False,
    json: JsonOption = None,
    *,
    shared: Shared,
) -> None:
    """Finished quantised checkpoints against their original.

    Layer by layer: the error of its weights, and how they were rounded: to the nearest level of
    their grid, by a solver such as GPTQ, or from other weights than this original's. Scales that
    AWQ or SmoothQuant folded into a layer are taken back first. As a whole: KL, perplexity and
    agreement with the original on the same windows. --restore says which layers to keep in more
    bits next time. With - in place of REF, what the files alone show: codes, scales, zero points,
    and where they contradict the configuration.
    """
    with reporting_errors():
        settings, _ = shared.resolve()
        check_destination(json)
        if weights and restore:
            raise UsageError("--restore measures with the model: leave out --weights")
        alone = reference == "-"
        if alone and restore:
            raise UsageError("--restore measures with the original: name it in place of -")
        if logits and restore:
            raise UsageError("--restore measures with the original: leave out --logits")
        if save_logits and (logits or weights or alone):
            raise UsageError(
                "--save-logits runs the original: leave out --logits and --weights, and name it"
            )
        ask = p.Compare(
            tuple(located_model(each) for each in quantised),
            score=not (weights or alone or logits),
            restore=restore,
            alone=alone,
            logits=_absolute(logits),
            save_logits=_absolute(save_logits),
        )
        if alone:  # the store and the settings are those of the first
            reference = quantised[0]
        outcome = run(reference, settings, ask)
        document = documents.compare_document(outcome.session, outcome.job)
        text = tables.comparison_markdown if markdown else tables.comparison_text
        publish(document, text, json)


def _absolute(path: str) -> str:
    """A path for an engine, whose working folder is not this one."""
    return os.path.abspath(os.path.expanduser(path)) if path else ""
