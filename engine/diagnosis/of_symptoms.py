"""Symptoms of a recipe over a set of prompts: what it adds to the reference's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import msgspec

from engine import protocol as p
from engine.diagnosis.detectors import KINDS, Kind, Symptom, symptoms
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
        own = {_family(each.kind) for each in self.reference}
        return [each for each in self.changed if _family(each.kind) not in own]


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
    """Prompts where only the reference does."""

    @property
    def chance(self) -> float:
        """Probability of as uneven a change or more, were both as likely (exact McNemar test)."""
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
        gone = sum(a and not b for a, b in zip(own, theirs, strict=True))
        if any(own) or any(theirs):
            found.append(
                KindRate(
                    kind, Rate(sum(own), total), Rate(sum(theirs), total), Rate(sum(added), total),
                    gone,
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
