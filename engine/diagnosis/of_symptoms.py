"""Symptoms of a recipe over a set of prompts: what it adds to the reference's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import msgspec

from engine import protocol as p
from engine.diagnosis.detectors import KINDS, RELATIVE, Kind, Symptom, symptoms
from engine.diagnosis.proportions import mcnemar, wilson


class Shown(msgspec.Struct, frozen=True, dict=True):
    """One prompt with what was found in both of its continuations."""

    fact: p.Continued

    @cached_property
    def reference(self) -> list[Symptom]:
        """What the reference does by itself."""
        return symptoms(self.fact.reference, self.fact.reference)

    @cached_property
    def changed(self) -> list[Symptom]:
        """What the recipe does."""
        return symptoms(self.fact.changed, self.fact.reference)

    @cached_property
    def added(self) -> list[Symptom]:
        """What the recipe does and the reference does not, the gravest first."""
        return _without(self.changed, self.reference)

    @cached_property
    def reference_fails(self) -> bool:
        """Whether the reference fails by itself; a refusal is no failure."""
        return any(each.kind != "refusal" for each in self.reference)

    @cached_property
    def gone(self) -> list[Symptom]:
        """What the reference does and the recipe does not, the gravest first."""
        return _without(self.reference, self.changed)


def _without(some: Sequence[Symptom], others: Sequence[Symptom]) -> list[Symptom]:
    """Symptoms that are of no kind like those of others."""
    families = {_family(each.kind) for each in others}
    return [each for each in some if _family(each.kind) not in families]


def _family(kind: Kind) -> str:
    """Kinds that are one and the same thing to different degrees."""
    return "repeats" if kind in ("one-token", "loop", "list-loop") else kind


@dataclass(frozen=True)
class Rate:
    """How many of the prompts show a symptom."""

    count: int
    total: int

    @property
    def share(self) -> float:
        """0 to 1; nan of no prompts."""
        return self.count / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval (Wilson 1927); (0, 1) of no prompts."""
        return wilson(self.count, self.total)


class KindRate(NamedTuple):
    """A symptom over all prompts, reference beside recipe."""

    kind: Kind
    reference: Rate
    changed: Rate
    added: Rate
    """Prompts where the recipe shows it, and the reference nothing like it."""
    gone: int
    """Prompts where the reference shows it, and the recipe nothing like it."""

    @property
    def chance(self) -> float:
        """Probability of as uneven a change or more, were both as likely (exact McNemar test).

        Nan of what is told by the reference's own text, which cannot show it: nothing is gone.
        """
        if self.kind in RELATIVE:
            return math.nan
        return mcnemar(self.added.count, self.gone)


def shown(facts: Sequence[p.Continued]) -> list[Shown]:
    """Prompts with their symptoms, in the same order."""
    return [Shown(fact) for fact in facts]


def rates(prompts: Sequence[Shown]) -> list[KindRate]:
    """Every symptom that some prompt shows, the gravest first."""
    total = len(prompts)
    found = []
    for kind in KINDS:
        own = [any(each.kind == kind for each in prompt.reference) for prompt in prompts]
        theirs = [any(each.kind == kind for each in prompt.changed) for prompt in prompts]
        added = [any(each.kind == kind for each in prompt.added) for prompt in prompts]
        gone = [any(each.kind == kind for each in prompt.gone) for prompt in prompts]
        if any(own) or any(theirs):
            found.append(
                KindRate(
                    kind, Rate(sum(own), total), Rate(sum(theirs), total), Rate(sum(added), total),
                    sum(gone),
                )
            )  # fmt: skip
    return found


def alarms(prompts: Sequence[Shown]) -> list[Shown]:
    """Prompts where the recipe does something that the reference does not."""
    return [prompt for prompt in prompts if prompt.added]


def vanishing_refusals(prompts: Sequence[Shown]) -> list[tuple[Shown, Shown]]:
    """Refusals of the recipe alone that vanish where the prompt is rephrased: damage, not policy.

    Returns:
        The prompt that is refused, and one that asks for the same and is answered.
    """
    groups: dict[str, list[Shown]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.fact.rephrases or prompt.fact.id, []).append(prompt)
    found = []
    for group in groups.values():
        answered = [each for each in group if not _refuses(each.changed)]
        for each in group:
            if answered and _refuses(each.added):
                found.append((each, answered[0]))
    return found


def _refuses(found: Sequence[Symptom]) -> bool:
    return any(each.kind == "refusal" for each in found)
