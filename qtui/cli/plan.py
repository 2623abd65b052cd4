"""``qtui plan``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from engine import protocol as p
from engine.errors import FormatError, UsageError
from engine.export.target import listed, targets
from engine.formats.catalogue import KEPT
from engine.formats.grammar import parse_format
from engine.report import documents, tables
from engine.report.recipe_text import recipe_file
from engine.store.files import write_whole
from qtui.cli.exit import check_destination, check_file, print_error, publish, reporting_errors
from qtui.cli.options import (
    FormatsOption,
    JsonOption,
    ModelArgument,
    Shared,
    expanded,
    shares_options,
    split_formats,
)
from qtui.cli.run import run


@shares_options
def plan(
    model: ModelArgument,
    bits: Annotated[
        float | None,
        typer.Option("--bits", metavar="B", help="bits per weight of the body, at most"),
    ] = None,
    gib: Annotated[
        float | None,
        typer.Option(
            "--gib",
            metavar="G",
            help="GiB of the artefact, at most; with --context, of its cache too",
        ),
    ] = None,
    kl: Annotated[
        float | None,
        typer.Option(
            "--kl", metavar="K", help="KL in nats per token, at most, in the fewest bytes"
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context", metavar="N", help="tokens of a sequence whose keys and values must fit"
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", metavar="N", help="sequences of --context tokens at once"),
    ] = None,
    cache_bits: Annotated[
        int | None, typer.Option("--cache-bits", metavar="16|8|4", help="bits of a cached number")
    ] = None,
    formats: FormatsOption = None,
    pin: Annotated[
        list[str] | None,
        typer.Option(
            "--pin",
            metavar="NAME=F",
            help="give a layer, or all that match re:PATTERN, this format",
        ),
    ] = None,
    ban: Annotated[
        list[str] | None,
        typer.Option(
            "--ban", metavar="[KIND=]F", help="a format that no layer, or none of a kind, may take"
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="TARGET", help="export target that must be able to store the recipe"
        ),
    ] = None,
    ungrouped: Annotated[
        bool,
        typer.Option("--ungrouped", help="let q, k and v, and gate and up, take different formats"),
    ] = False,
    forwards: Annotated[
        float,
        typer.Option(
            "--forwards", metavar="N", help="forward passes to spend on measuring, 8 at least"
        ),
    ] = 20,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE", help="the recipe file to write")
    ] = None,
    json: JsonOption = None,
    *,
    shared: Shared,
) -> None:
    """The best recipe within a budget.

    Estimates every layer in every format, finds the formats with the least KL within --bits or
    --gib (or the fewest bytes within --kl), measures the recipe, estimates again at that recipe,
    and keeps the best one measured. Layers that serving engines store as one tensor (q, k and v;
    gate and up) take one format unless --ungrouped is given. With --context, --gib is what a card
    has for the weights and the cache of keys and values; --context, --batch and --cache-bits are
    those of the profile if not given. Nothing is written without -o.
    """
    with reporting_errors():
        settings, _ = shared.resolve()
        given = {"context": context, "batch": batch, "cache_bits": cache_bits}
        budget = _budget(bits, gib, kl, given, settings)
        if to is not None and to not in {target.name for target in targets()}:
            raise UsageError(f"--to {to!r}: targets are {listed()}")
        check_destination(json)
        path = None if output is None else expanded(output)
        if output is not None and path is not None:
            check_file("-o", output, path)
        wanted = split_formats(formats)
        ask = p.Plan(
            budget=budget,
            formats=wanted,
            pins=dict(_pair("--pin", each) for each in pin or ()),
            bans=tuple(_ban(each) for each in ban or ()),
            to=to or "",
            grouped=not ungrouped,
            forwards=forwards,
            stored=not forwards,
        )
        outcome = run(model, settings, ask)
        planned = outcome.job.read(p.Planned)
        document = documents.plan_document(outcome.session, planned, outcome.job)
        if path is not None:
            text = recipe_file(outcome.session, planned.recipe, _said(planned), document.model.name)
            write_whole(path, text.encode())
            print_error(f"recipe written to {path}")
        publish(document, tables.plan_text, json)


def _budget(
    bits: float | None,
    gib: float | None,
    kl: float | None,
    cache: Mapping[str, int | None],
    settings: p.Settings,
) -> p.Budget:
    if sum(each is not None for each in (bits, gib, kl)) != 1:
        raise UsageError("qtui plan needs exactly one of --bits B, --gib G and --kl K")
    given = {name: value for name, value in cache.items() if value is not None}
    if (held := given.get("cache_bits", 16)) not in p.CACHE_BITS:
        raise UsageError(f"--cache-bits is {held}, expected 16, 8 or 4")
    for option, least in (("context", 0), ("batch", 1)):
        if (value := given.get(option, least)) < least:
            raise UsageError(f"--{option} is {value}, expected at least {least}")
    usual = settings.cache if gib is not None else {}
    return p.Budget(bits=bits, gib=gib, kl=kl, **{**usual, **given})


def _pair(option: str, given: str) -> tuple[str, str]:
    name, equals, held = given.partition("=")
    if name.startswith("re:"):
        # A pattern may have the sign too: what follows the right one is a format.
        parts = given.split("=")
        for at in range(1, len(parts)):
            name, held = "=".join(parts[:at]), "=".join(parts[at:])
            if is_format(held):
                break
    if not equals or not name or not held:
        raise UsageError(f"{option} {given!r}: expected NAME=FORMAT, as in lm_head=int8")
    return name, held


def _ban(given: str) -> tuple[str, str]:
    """Kind and format; without a kind for every layer."""
    return ("", given) if is_format(given) or "=" not in given else _pair("--ban", given)


def is_format(text: str) -> bool:
    """Whether a text is a format of the grammar, or ``kept``."""
    try:
        parse_format(text)
    except FormatError:
        return text == KEPT
    return True


def _said(planned: p.Planned) -> Sequence[str]:
    """Comments at the top of the recipe file."""
    said = [f"planned for {planned.budget}"]
    if (score := planned.point.score) is not None:
        said.append(
            f"measured: ppl {score.ppl!r}, kl {score.kl!r} nats per token, "
            f"{score.bits_per_weight!r} bits per weight, {score.bytes} bytes"
        )
    return said
