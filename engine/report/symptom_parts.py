"""Parts of the document of symptoms, made from facts."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from engine import protocol as p
from engine.diagnosis.causes import Cause, causes
from engine.diagnosis.detectors import Symptom
from engine.diagnosis.of_symptoms import KindRate, Shown, alarms, rates, shown
from engine.recipes.given import as_evaluated, formats_given, names_recipe
from engine.report import schema as s
from engine.report.json import finite
from engine.session import Session


def sampling_part(how: p.Sampling, seed: int) -> s.SamplingPart:
    """How prompts were continued."""
    return s.SamplingPart(
        new_tokens=how.new_tokens,
        temperature=finite(how.temperature),
        top_p=finite(how.top_p),
        seed=seed,
        chat=how.chat,
    )


def prompt_part(prompt: Shown) -> s.PromptPart:
    """A prompt with both continuations."""
    fact = prompt.fact
    return s.PromptPart(
        id=fact.id,
        topic=fact.topic or UNSET,
        prompt=fact.text,
        reference=fact.reference.text,
        recipe=fact.changed.text,
        reference_tokens=len(fact.reference.tokens),
        recipe_tokens=len(fact.changed.tokens),
        reference_surprise=finite(fact.reference.surprise),
        recipe_surprise=finite(fact.changed.surprise),
        kl=finite(fact.kl),
        first_difference=None if fact.first < 0 else fact.first,
        difference=UNSET if fact.first < 0 else _difference(fact),
        loop=_loop(prompt.changed),
        reference_findings=[each.kind for each in prompt.reference],
        findings=[each.kind for each in prompt.added],
    )


def _difference(fact: p.Continued) -> s.DifferencePart:
    def choices(top: Sequence[p.Choice]) -> list[s.ChoicePart]:
        return [s.ChoicePart(token=each.token, p=finite(each.p)) for each in top]

    return s.DifferencePart(
        token=fact.first,
        reference=fact.pieces[0],
        recipe=fact.pieces[1],
        reference_top=choices(fact.reference_top),
        recipe_top=choices(fact.changed_top),
    )


def _loop(found: Sequence[Symptom]) -> s.LoopPart | UnsetType:
    for each in found:
        if each.kind == "loop" and "period" in each.evidence:
            where = each.evidence
            return s.LoopPart(period=int(where["period"]), start=int(where["start"]))
    return UNSET


EXAMPLES = 4
"""Prompts with a symptom that a report shows."""


def formats_of(session: Session, command: p.FindSymptoms) -> list[str]:
    """Formats of the recipe whose prompts were continued: those named, else the session's."""
    named = names_recipe(command)
    return list(formats_given(as_evaluated(command)) if named else session.changed.values())


def prompt_set_part(
    session: Session,
    recipe: str,
    formats: Sequence[str],
    keys: Sequence[str],
    how: p.Sampling,
    of_failing: str,
) -> s.PromptSetPart:
    """Prompts that a recipe continued in one way.

    Args:
        session: has their facts.
        recipe: its hash.
        formats: of its layers.
        keys: of the prompts.
        how: they were continued.
        of_failing: the key of those that were traced to layers; see `p.Symptoms.failing`.
    """
    known = session.continued.get(recipe, {})
    prompts = shown([known[each] for each in keys if each in known])
    failing = alarms(prompts)
    traced = session.traced.get(recipe)
    if traced is not None and traced.prompts != of_failing:
        traced = None  # of other texts
    contrast = None if traced is None else traced.contrast
    found = causes(session, prompts, traced, formats)
    return s.PromptSetPart(
        sampling=sampling_part(how, session.settings.seed),
        prompts=len(prompts),
        same=sum(each.fact.first < 0 for each in prompts),
        alarms=len(failing),
        rates=[rate_part(each) for each in rates(prompts)],
        restored=[] if traced is None else [restored_part(each) for each in traced.ranked()],
        contrast=UNSET if contrast is None else contrast_part(contrast),
        causes=[cause_part(each) for each in found],
        examples=[prompt_part(each) for each in failing[:EXAMPLES]],
    )


def rate_part(found: KindRate) -> s.SymptomRate:
    """How often a symptom is there."""
    return s.SymptomRate(
        symptom=found.kind,
        prompts=found.reference.total,
        reference=found.reference.count,
        reference_ci95=found.reference.interval,
        recipe=found.changed.count,
        recipe_ci95=found.changed.interval,
        added=found.added.count,
        chance=finite(found.chance),
    )


def restored_part(fact: p.SymptomRestored) -> s.RestoredLayer:
    """What giving layers back wins."""
    return s.RestoredLayer(
        name=fact.unit,
        layers=list(fact.layers),
        kl=finite(fact.kl),
        kl_se=finite(fact.kl_se),
        whole=finite(fact.whole),
        texts=fact.texts,
        zeroed=finite(fact.zeroed),
        nonfinite=finite(fact.nonfinite),
    )


def contrast_part(fact: p.SymptomContrast) -> s.ContrastPart:
    """Prompts that fail against prompts that do not."""
    return s.ContrastPart(
        failing=fact.failing,
        healthy=fact.healthy,
        reference_fails=fact.reference_fails or UNSET,
        channels=[
            s.ContrastedChannelPart(
                layer=each.layer,
                channel=each.channel,
                failing=finite(each.failing),
                healthy=finite(each.healthy),
                chance=finite(each.chance),
                share=finite(each.share),
                share_healthy=finite(each.share_healthy),
            )
            for each in fact.channels
        ],
        layers=[
            s.ContrastedLayerPart(
                layer=each.layer,
                failing=finite(each.failing),
                healthy=finite(each.healthy),
                chance=finite(each.chance),
            )
            for each in fact.layers
        ],
        heads=[
            s.ContrastedHeadPart(
                block=each.block,
                module=each.module,
                head=each.head,
                failing=finite(each.failing),
                healthy=finite(each.healthy),
                chance=finite(each.chance),
            )
            for each in fact.heads
        ],
        why=fact.why or UNSET,
    )


def cause_part(cause: Cause) -> s.CausePart:
    """Why a recipe shows a symptom."""
    return s.CausePart(
        symptom=cause.symptom,
        cause=cause.id,
        sentence=cause.sentence,
        layers=list(cause.layers),
        evidence={name: finite(value) for name, value in cause.evidence.items()},
        fix=cause.cures[0].sentence if cause.cures else UNSET,
        fixes=[
            s.CurePart(sentence=each.sentence, tried=each.tried, layers=list(each.layers))
            for each in cause.cures
        ],
    )
