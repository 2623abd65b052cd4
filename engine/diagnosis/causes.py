"""From symptoms and what was measured about them to causes, and to fixes in order of their cost.

A cause is named only where something was measured that shows it, with its evidence. A fix says
whether it was tried: giving layers back was, where `qtui symptoms --why` continued the prompts
again; anything else is what to try next. No arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec

from engine import protocol as p
from engine.diagnosis.detectors import KINDS, Kind
from engine.diagnosis.of_contrast import diverging, firing
from engine.diagnosis.of_symptoms import Rate, Shown, alarms, vanishing_refusals
from engine.session import Session, Traced
from engine.session.artefact import OUTSIDE

SPREAD = 0.5
"""Share of KL that the best layers given back together must win for damage to be concentrated."""
ZEROED = 0.05
"""Share of a layer's weights in rows of zeros: a few rows that round to zero are no cause."""
NAMED = 4
"""Layers by which that is told."""
TOPIC = 0.01
"""Chance below which a topic fails more often than the others: Fisher's exact test, times the
number of topics (Bonferroni)."""


class Cure(msgspec.Struct, frozen=True, kw_only=True):
    """Something that may help."""

    sentence: str
    tried: bool = False
    """Whether it was measured that it does."""
    layers: tuple[str, ...] = ()
    """Layers to keep, where it is that."""


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """Why a recipe shows a symptom."""

    symptom: Kind
    """The most frequent of those that the recipe adds."""
    id: str
    """The cause, in a word."""
    sentence: str
    layers: tuple[str, ...] = ()
    evidence: dict[str, float] = {}
    """The figures behind it, by name."""
    cures: tuple[Cure, ...] = ()
    """The cheapest first."""


def causes(
    session: Session, prompts: Sequence[Shown], traced: Traced | None, formats: Sequence[str]
) -> list[Cause]:
    """Causes that were measured, the surest first; none where the recipe adds no symptom.

    Args:
        session: whose layers they are.
        prompts: all that were continued.
        traced: symptoms traced to layers, where they were.
        formats: that the recipe's layers have.
    """
    failing = alarms(prompts)
    if not failing:
        return []
    kind = _commonest(failing)
    found: list[Cause] = []
    if traced is not None and traced.restored:
        found += _broken_weights(kind, traced)
        found += _layers(session, kind, traced, formats)
    if traced is not None and traced.contrast is not None:
        found += _inside(kind, traced.contrast)
    found += _topics(kind, prompts)
    found += _refusals(prompts)
    return found


def _commonest(failing: Sequence[Shown]) -> Kind:
    kinds = [prompt.added[0].kind for prompt in failing]
    return max(KINDS, key=kinds.count)


def _broken_weights(kind: Kind, traced: Traced) -> Iterator[Cause]:
    """Rows of zeros, and values that are not finite: of scales, whatever the text says."""
    for fact in traced.ranked():
        if fact.by != "layer":
            continue
        if (fact.zeroed < ZEROED and not fact.nonfinite) or fact.kl <= 0:
            continue
        zeroed = fact.zeroed >= fact.nonfinite
        share = max(fact.zeroed, fact.nonfinite)
        what = "in rows of zeros" if zeroed else "not finite"
        yield Cause(
            symptom=kind,
            id="zero-scales" if zeroed else "scales-not-finite",
            sentence=f"{share:.1%} of the weights of {fact.unit} are {what}: its scales are "
            + ("zero, or its steps larger than the weights" if zeroed else "NaN or infinite"),
            layers=(fact.unit,),
            evidence={"zeroed": fact.zeroed, "nonfinite": fact.nonfinite, "kl": fact.kl},
            cures=(
                Cure(sentence=f"look at the scales of {fact.unit}, and quantise it in groups"),
                *_tried(traced),
            ),
        )


def _layers(
    session: Session, kind: Kind, traced: Traced, formats: Sequence[str]
) -> Iterator[Cause]:
    won = [fact for fact in traced.ranked() if fact.kl > 0]
    ranked = [fact for fact in won if fact.by == "layer"]
    cured = next((cure for cure in traced.cures if not cure.left), None)
    if not won:
        return
    best = won[0]
    evidence = {"kl": best.whole, "kl_back": best.kl, "kl_back_se": best.kl_se}
    if cured is not None:
        wins = {fact.unit: fact.kl for fact in ranked}
        named = tuple(sorted(cured.layers, key=lambda name: -wins.get(name, 0.0)))
        outside = [name for name in named if _role(session, name) in OUTSIDE]
        id = "layers"
        if outside and outside[0] == named[0]:
            id = _role(session, outside[0])
        yield Cause(
            symptom=kind,
            id=id,
            sentence=f"{_list(named)} given back: the symptom is gone from "
            + (f"all {cured.failing} prompts" if cured.failing > 1 else "the prompt")
            + f" that {'were' if cured.failing > 1 else 'was'} tried"
            + _shares(named, won),
            layers=named,
            evidence={**evidence, "prompts": float(cured.failing), "left": 0.0},
            cures=_tried(traced),
        )
        return
    least = min(traced.cures, key=lambda cure: (cure.left, -len(cure.layers)), default=None)
    if least is None:
        return
    share = sum(max(fact.kl, 0.0) for fact in ranked[:NAMED]) / best.whole if best.whole else 0.0
    sets = [fact.kl for fact in won if fact.by != "layer"]
    spread = share < SPREAD and max(sets, default=0.0) < SPREAD * best.whole
    yield Cause(
        symptom=kind,
        id="spread" if spread else "more-layers",
        sentence=f"no few layers cure it: with {_list(least.layers)} given back "
        f"{least.left} of {least.failing} prompts still {'shows' if least.left == 1 else 'show'} "
        f"it; the best {NAMED} win "
        f"{share:.0%} of the KL"
        + (": the damage is spread over many layers" if spread else ""),
        layers=tuple(least.layers),
        evidence={
            **evidence, "share": share, "prompts": float(least.failing), "left": float(least.left),
        },
        cures=tuple(_next(formats)),
    )  # fmt: skip


def _shares(named: Sequence[str], won: Sequence[p.SymptomRestored]) -> str:
    """What layers win together, where that was measured, and what the best of them wins alone."""
    said = []
    for fact in won:
        if fact.whole > 0 and len(named) > 1 and set(fact.layers) == set(named):
            said.append(f"{fact.kl / fact.whole:.0%} of the KL there together")
            break
    alone = next((fact for fact in won if fact.layers == (named[0],)), None)
    if alone is not None and alone.whole > 0:
        of = "" if said else " of the KL there"
        said.append(f"{alone.kl / alone.whole:.0%}{of} by {named[0]} alone")
    return f" ({', '.join(said)})" if said else ""


def _tried(traced: Traced) -> tuple[Cure, ...]:
    """Keeping layers, as far as that was tried and cured the symptom."""
    return tuple(
        Cure(
            sentence=f"keep {_list(cure.layers)} as stored, or in more bits",
            tried=True,
            layers=tuple(cure.layers),
        )
        for cure in traced.cures
        if not cure.left
    )


def _next(formats: Sequence[str]) -> Iterator[Cure]:
    """What to try where no few layers cure it, in order of its cost; not measured here."""
    if any(
        "-channel" in each or "-tensor" in each or "-g128" in each or "-g256" in each
        for each in formats
    ):
        yield Cure(sentence="a smaller group for all layers (int4-g32)")
    if any(each.startswith("int") and "+" not in each for each in formats):
        yield Cure(sentence="a method for all layers (+gptq, +awq)")
    if any("+gptq" in each or "+awq" in each for each in formats):
        yield Cure(sentence="calibration text like the prompts that fail (--calib)")
    yield Cure(sentence="more bits where a sweep says that they pay (qtui plan)")


def _inside(kind: Kind, contrast: p.SymptomContrast) -> Iterator[Cause]:
    """Channels that fire, and heads that diverge, only where prompts fail."""
    for layer, sentence, evidence in firing(contrast):
        yield Cause(
            symptom=kind,
            id="channels",
            sentence=sentence,
            layers=(layer,),
            evidence=evidence,
            cures=(
                Cure(sentence=f"calibration text like the prompts that fail for {layer} (--calib)"),
                Cure(sentence=f"more bits, or a smaller group, for {layer}", layers=(layer,)),
            ),
        )
    for sentence, evidence in diverging(contrast):
        yield Cause(symptom=kind, id="attention-head", sentence=sentence, evidence=evidence)


def _topics(kind: Kind, prompts: Sequence[Shown]) -> Iterator[Cause]:
    """A topic that fails more often than all others."""
    topics = sorted({each.fact.topic for each in prompts} - {""})
    if len({each.fact.topic for each in prompts}) < 2:
        return
    for topic in topics:
        inside = [each for each in prompts if each.fact.topic == topic]
        others = [each for each in prompts if each.fact.topic != topic]
        here, there = (Rate(len(alarms(some)), len(some)) for some in (inside, others))
        chance = fisher(here.count, here.total, there.count, there.total)
        chance = min(1.0, chance * len(topics))  # of several, one may fail more often by chance
        if here.share > there.share and chance < TOPIC:
            yield Cause(
                symptom=kind,
                id="topic",
                sentence=f"prompts on {topic} fail more often: {here.count} of {here.total}, "
                f"others {there.count} of {there.total}",
                evidence={
                    "failing": float(here.count), "prompts": float(here.total),
                    "failing_others": float(there.count), "others": float(there.total),
                    "chance": chance,
                },
                cures=(Cure(sentence=f"measure a sweep on text of {topic} (--text)"),),
            )  # fmt: skip


def fisher(one: int, of: int, other: int, of_other: int) -> float:
    """One-sided p of Fisher's exact test: as many of the first or more, by chance."""
    both, total = one + other, of + of_other
    ways = math.comb(total, both)
    most = min(of, both)
    tail = sum(math.comb(of, k) * math.comb(of_other, both - k) for k in range(one, most + 1))
    return tail / ways


def _refusals(prompts: Sequence[Shown]) -> Iterator[Cause]:
    found = vanishing_refusals(prompts)
    if found:
        refused, answered = found[0]
        yield Cause(
            symptom="refusal",
            id="refusal-vanishes",
            sentence=f"{len(found)} refusals of the recipe vanish when rephrased, such as "
            f"{refused.fact.id} as {answered.fact.id}: damage, not policy",
            evidence={"refusals": float(len(found))},
        )


def _role(session: Session, layer: str) -> str:
    row = session.row(layer)
    return "" if row is None else session.layers.roles[row]


def _list(names: Sequence[str]) -> str:
    """``a, b and c``; of many the first ones."""
    if len(names) > NAMED:
        return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
