"""The planning job."""

from __future__ import annotations

import math

import msgspec

from engine import protocol as p
from engine.errors import UsageError
from engine.export.target import target_named
from engine.formats.grammar import parse_built
from engine.patterns import pattern_of
from engine.recipes.changes import canonical
from engine.service.jobs import Context, JobSpec, Steps
from engine.workspace import Loaded, Opened, Workspace, needs


def _accepted(context: Context[Workspace], command: p.Plan) -> p.Plan:
    budget, session = command.budget, context.session
    if sum(value is not None for value in (budget.bits, budget.gib, budget.kl)) != 1:
        raise UsageError("a budget is one of bits per weight, GiB and KL: give exactly one")
    for name, value in budget.given.items():
        if not 0 < value < math.inf:
            raise UsageError(f"a budget of {name} {value:g}: expected a number above 0")
    if budget.context < 0 or budget.batch < 1 or budget.cache_bits not in p.CACHE_BITS:
        raise UsageError("a context is 0 or more, a batch 1 or more, a cache of 16, 8 or 4 bits")
    if not 0 <= command.forwards < math.inf:
        raise UsageError(f"{command.forwards:g} forward passes: expected 0 or more")
    if budget.context and budget.gib is None:
        raise UsageError("a context counts in a budget of GiB alone: give --gib")
    if command.stored and command.forwards:
        raise UsageError("a plan of what is stored takes no forward passes")
    if command.to:
        target_named(command.to)
    known = [key.format for key in session.effects.known("degrade") if key.by == "layer"]
    formats = canonical(command.formats or [*session.settings.estimate_formats, *known])
    pins = {name: _pinned(held) for name, held in command.pins.items()}
    for pattern in pins:
        pattern_of(pattern)
    bans = tuple((kind, str(parse_built(format))) for kind, format in command.bans)
    return msgspec.structs.replace(
        command,
        formats=tuple(format for format in formats if not parse_built(format).kept),
        served=not command.to
        and (command.served or not (command.formats or session.settings.unserved)),
        pins=pins,
        bans=bans,
    )


def _pinned(held: str) -> str:
    return held if held == "kept" else str(parse_built(held))


def _with_model(command: p.Plan) -> bool:
    return bool(command.forwards) or command.stored


def _steps(context: Context[Workspace], command: p.Plan) -> Steps:
    yield None  # a generator in any case
    if command.stored:
        from engine.planning.planning import plan_stored

        return (yield from plan_stored(context.workspace.need(Loaded), command, context.job))
    if not command.forwards:
        from engine.planning.known import plan_known

        assert context.snapshot is not None
        opened = context.workspace.need(Opened)
        return plan_known(context.snapshot, command, opened.checkpoint.dtype)
    from engine.planning.planning import plan

    return (yield from plan(context.workspace.need(Loaded), command, context.job))


PLAN = JobSpec(
    command=p.Plan,
    kind="plan",
    title=lambda command: f"plan {command.budget}",
    needs=lambda command: "model" if _with_model(command) else "checkpoint",
    lane=lambda command: "compute" if _with_model(command) else "questions",
    snapshot=lambda command: not _with_model(command),
    urgency=2,
    repeated="join",
    memory=needs.of_either(_with_model, needs.of_passes(streams=2, backward=True)),
    accept=_accepted,
    steps=_steps,
)
