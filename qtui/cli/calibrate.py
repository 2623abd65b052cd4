"""``qtui calibrate``."""

from __future__ import annotations

import inspect
from typing import Annotated

import msgspec
import typer

from engine import protocol as p
from engine.errors import UsageError
from engine.report import documents, tables
from engine.texts.sets import CHAT_PREFIX, GENERATED, NAMED
from qtui.cli.exit import check_destination, publish, reporting_errors
from qtui.cli.options import JsonOption, ModelArgument, Shared, located_text, shares_options
from qtui.cli.run import run

DEFAULT = "eval,random"
"""Sets that need no data beside the evaluation text: the best case and the worst."""


@shares_options
def calibrate(
    model: ModelArgument,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--sets",
            metavar="A,B",
            help="sets to compare, as above; may be given several times",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option("--method", metavar="F", help="format that uses calibration text"),
    ] = "int4-g128+gptq",
    samples: Annotated[
        str | None,
        typer.Option(
            "--samples",
            metavar="N,…",
            help="windows of each set (default: a quarter, half and all of --calib-tokens)",
        ),
    ] = None,
    seq_len: Annotated[
        str | None,
        typer.Option(
            "--seq-len",
            metavar="N,…",
            help="tokens of each; the longest is the evaluation's window too",
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="FILE|DATASET[:COLUMN]",
            help="evaluation text; may be given several times",
        ),
    ] = None,
    checks: Annotated[
        bool, typer.Option("--checks", help="warnings alone: nothing is quantised")
    ] = False,
    no_halves: Annotated[
        bool,
        typer.Option("--no-halves", help="do not measure how much halves of a set differ"),
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="print Markdown")] = False,
    json: JsonOption = None,
    *,
    shared: Shared,
) -> None:
    """Calibration sets compared by held-out KL.

    Quantises the whole body by one method, calibrated on each set, and measures KL and perplexity
    on texts that no set holds: which set to use, how many samples are enough, and what is wrong
    with a set before anything is measured. Statistics are those of the unchanged model, gathered in
    one pass over each set; results are saved, and a run that was ended goes on where it stopped.

    SETS
    """
    with reporting_errors():
        check_destination(json)
        lengths = _numbers("--seq-len", seq_len, 2)
        named = tuple(located_text(each) for each in text or ())
        settings, _ = shared.resolve()
        settings = msgspec.structs.replace(
            settings,
            text=named[0] if named else None,
            seq_len=max(lengths) if lengths else settings.seq_len,
        )
        ask = p.Calibrate(
            sets=_sets(sets or [DEFAULT]),
            method=method,
            samples=_numbers("--samples", samples, 1),
            seq_lens=lengths,
            texts=named,
            measure=not checks,
            halves=not no_halves,
        )
        outcome = run(model, settings, ask)
        document = documents.calibrate_document(outcome.session, outcome.job)
        printed = tables.calibration_markdown if markdown else tables.calibration_text
        publish(document, printed, json)


def _sets(given: list[str]) -> tuple[str, ...]:
    """Names of sets, with paths from where the terminal is.

    Raises:
        UsageError: one is empty.
    """
    found = [each.strip() for one in given for each in one.split(",")]
    if not all(found):
        raise UsageError(f"--sets is {','.join(given)!r}, expected sets separated by commas")
    return tuple(dict.fromkeys(map(_located, found)))


def _located(name: str) -> str:
    if name in NAMED or name in GENERATED:
        return name
    chat = CHAT_PREFIX if name.startswith(CHAT_PREFIX) else ""
    return chat + located_text(name.removeprefix(chat))


def _numbers(option: str, given: str | None, least: int) -> tuple[int, ...]:
    """``N,N`` as numbers; none if not given.

    Raises:
        UsageError: one is no number, or too small.
    """
    if given is None:
        return ()
    parts = [each.strip() for each in given.split(",")]
    if not all(each.isascii() and each.isdecimal() and int(each) >= least for each in parts):
        raise UsageError(f"{option} is {given!r}, expected numbers of at least {least}, as in 8,16")
    return tuple(sorted({int(each) for each in parts}))


SETS_HELP = "\n\n".join(
    ["Sets, besides files, folders and datasets; chat:FILE renders chats by the tokenizer's "
     "template:"]
    + [f"{name}: {each.help}" for name, each in NAMED.items()]
    + [f"{name}: {words}" for name, words in GENERATED.items()]
)  # fmt: skip
calibrate.__doc__ = inspect.cleandoc(calibrate.__doc__ or "").replace("SETS", SETS_HELP)
