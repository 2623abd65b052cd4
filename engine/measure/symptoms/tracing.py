"""Traces symptoms to layers, and keeps what was measured as facts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import msgspec

from engine import protocol as p
from engine.diagnosis.detectors import KINDS
from engine.diagnosis.of_symptoms import Shown, alarms
from engine.measure.counts import JobCounts
from engine.measure.symptoms.continuing import Continuing
from engine.measure.symptoms.contrasting import Contrasted, Contrasting
from engine.measure.symptoms.forced import SCORED
from engine.measure.symptoms.restoring import FAILING, Failing, Restoring
from engine.measure.symptoms.units import Unit, units_first, units_within
from engine.model.network import Held
from engine.store import keys
from engine.texts.prompts import Tokens
from engine.workspace import Loaded

Events = Generator[p.AnyEvent | None, None, str]


def failing_prompts(facts: Sequence[p.Continued], prompts: Sequence[Tokens]) -> list[Failing]:
    """The prompts with symptoms that the reference does not show, the gravest first.

    Args:
        facts: what came of all prompts.
        prompts: the same, in the same order.
    """
    found = [
        Failing(shown, tokens)
        for shown, tokens in zip(map(Shown, facts), prompts, strict=True)
        if alarms([shown])
    ]
    found.sort(key=lambda each: KINDS.index(each.shown.added[0].kind))
    return found[:FAILING]


def healthy_prompts(facts: Sequence[p.Continued], prompts: Sequence[Tokens]) -> list[Failing]:
    """Prompts on which neither fails, from all parts of the set; arguments as above."""
    found = [
        Failing(shown, tokens)
        for shown, tokens in zip(map(Shown, facts), prompts, strict=True)
        if not alarms([shown]) and not shown.reference_fails
    ]
    step = max(1.0, len(found) / FAILING)
    return [found[int(at * step)] for at in range(min(FAILING, len(found)))]


def reference_failures(facts: Sequence[p.Continued]) -> int:
    """Prompts on which the reference fails by itself: what is inside says nothing of the recipe."""
    return sum(Shown(fact).reference_fails for fact in facts)


def trace(
    loaded: Loaded,
    failing: Sequence[Failing],
    healthy: Sequence[Failing],
    left_out: int,
    held: Mapping[str, Held],
    continuing: Continuing,
    template: Callable[[str], keys.SymptomRestored],
    counts: JobCounts,
) -> Events:
    """Give layers back, one at a time and then together; compare with prompts that do not fail.

    Args:
        loaded: the model.
        failing: not empty.
        healthy: may be empty.
        left_out: of all prompts, those on which the reference fails by itself.
        held: the recipe's weights.
        continuing: continues prompts as they were.
        template: the key of a fact about texts of this hash, without layers.
        counts: of the job.

    Yields:
        `Learned` with `SymptomRestored`, `SymptomCure` and `SymptomContrast`, `Progress`; a
        `Notice` where there is no contrast since the reference fails on every failing prompt.

    Returns:
        The key of the texts.
    """
    recipe = failing[0].shown.fact.recipe
    texts = [(each.tokens.ids, each.shown.fact.changed.tokens) for each in failing]
    prompts = hashlib.sha256(repr(texts).encode()).hexdigest()[:16]
    on = template(prompts)
    restoring = Restoring(
        loaded.network, failing, held,
        recipe=recipe, key=prompts, budget=loaded.budget() // 4, counts=counts,
    )  # fmt: skip
    first = units_first(loaded.network, on.recipe)
    found = yield from _restored(loaded, restoring, first, on, counts)
    if any(unit.by == "block" for unit, _ in found):
        found += yield from _restored(
            loaded, restoring, units_within(loaded.network, found), on, counts
        )
    for back, rest in restoring.cures([fact for _, fact in found]):
        key = keys.SymptomCure(**{**_fields(on), "layers": back}).address
        cure = loaded.known([key]).get(key)
        if isinstance(cure, p.SymptomCure):
            yield from counts.found([key], [cure])
        else:
            cure = yield from restoring.continued(continuing, back, rest)
            yield counts.learnt(key, cure)
        if not cure.left:
            break
    alone = [each for each in failing if not each.shown.reference_fails]
    if alone:
        yield from _contrasted(loaded, alone, healthy, left_out, held, on, prompts, counts)
    else:
        yield p.Notice(
            "info",
            "on every prompt that fails the reference fails too, in another way: activations are "
            "not compared",
        )
    return prompts


def _contrasted(
    loaded: Loaded,
    failing: Sequence[Failing],
    healthy: Sequence[Failing],
    left_out: int,
    held: Mapping[str, Held],
    on: keys.SymptomRestored,
    prompts: str,
    counts: JobCounts,
) -> Generator[p.AnyEvent | None, None, None]:
    """What is different inside the model where prompts fail."""
    texts = [
        Contrasted([*each.tokens.ids, *each.shown.fact.reference.tokens[:SCORED]], failing=fails)
        for some, fails in ((failing, True), (healthy, False))
        for each in some
    ]
    compared: object = [(each.ids, each.failing) for each in texts]
    compared = (compared, left_out) if left_out else compared  # as earlier versions had it
    others = hashlib.sha256(repr(compared).encode()).hexdigest()
    address = keys.SymptomContrast(**_fields(on), others=others).address
    known = loaded.known([address])
    if known:
        yield from counts.found(list(known), list(known.values()))
        return
    contrasting = Contrasting(loaded.network, texts, held, counts)
    fact = yield from contrasting.run(failing[0].shown.fact.recipe, prompts)
    fact = msgspec.structs.replace(fact, reference_fails=left_out)
    yield counts.learnt(address, fact)


def _restored(
    loaded: Loaded,
    restoring: Restoring,
    units: Sequence[Unit],
    on: keys.SymptomRestored,
    counts: JobCounts,
) -> Generator[p.AnyEvent | None, None, list[tuple[Unit, p.SymptomRestored]]]:
    addresses = {
        unit: keys.SymptomRestored(**{**_fields(on), "layers": unit.layers}).address
        for unit in units
    }
    known = {
        address: fact
        for address, fact in loaded.known(list(addresses.values())).items()
        if isinstance(fact, p.SymptomRestored)
    }
    yield from counts.found(list(known), list(known.values()))
    left = [unit for unit in units if addresses[unit] not in known]
    facts = {unit: known[address] for unit, address in addresses.items() if address in known}
    stage = counts.stage("restoring", len(left))
    if left:
        yield from restoring.prepare()
    for done, unit in enumerate(left):
        yield stage.step(done, unit.name)
        facts[unit] = yield from restoring.restored(unit)
        yield counts.learnt(addresses[unit], facts[unit])
    return [(unit, facts[unit]) for unit in units]


def _fields(key: keys.SymptomRestored) -> dict[str, Any]:
    return {name: getattr(key, name) for name in key.__struct_fields__}
