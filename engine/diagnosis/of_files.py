"""Findings of a finished checkpoint that its files alone tell; no arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from statistics import median

import msgspec

from engine import protocol as p
from engine.diagnosis.finding import Finding, Severity
from engine.diagnosis.of_codes import code_findings
from engine.diagnosis.thresholds import Thresholds
from engine.session import Compared

SEVERITIES: dict[str, Severity] = {"ignored-nothing": "note"}
"""Of contradictions that are no warning."""
FEW = 2
"""Layers up to which each has a finding of its own."""
KIND = 4
"""Layers of a kind from which on one may stand out."""


def file_findings(compared: Compared, limits: Thresholds) -> Iterator[Finding]:
    """What the codes, scales and declarations of a finished checkpoint tell without an original.

    Args:
        compared: what is known of it.
        limits: from where on a figure is a finding.
    """
    facts = [fact for fact in compared.stored.values() if not fact.refused]
    yield from _contradictions(compared.opened, limits)
    yield from _together(_of_codes(facts, limits))
    yield from _together(_groups(facts))
    wrong = list(_sizes(facts, limits))
    yield from _together(wrong)
    yield from _together(_odd(facts, limits, {each.layer for each in wrong}))


def _contradictions(opened: p.ArtefactOpened, limits: Thresholds) -> Iterator[Finding]:
    """What the headers hold against the configuration."""
    by_said: dict[tuple[str, str], list[p.Contradiction]] = {}
    for each in opened.contradictions:
        if each.evidence.get("ratio", math.inf) >= limits.fused_scales:
            by_said.setdefault((each.id, each.said), []).append(each)
    for (id, said), all_of_it in by_said.items():
        layers = [layer for each in all_of_it for layer in each.layers]
        first = layers[0] if layers else ""
        if not layers:
            sentence = said
        elif len(layers) == 1:
            sentence = f"{first} is {said}"
        else:
            sentence = f"{len(layers)} layers ({first} …) are {said}"
        yield Finding(
            id=id,
            severity=SEVERITIES.get(id, "warning"),
            layer=first if len(layers) == 1 or len(all_of_it) == 1 else "",
            sentence=sentence,
            evidence={"layers": len(layers), **all_of_it[0].evidence},
        )


def _of_codes(facts: Iterable[p.StoredLayer], limits: Thresholds) -> Iterator[Finding]:
    for fact in facts:
        codes = fact.codes
        if codes is not None:
            shape = fact.shape
            yield from code_findings(
                fact.layer, codes, math.prod(shape), fact.zero_rows, math.prod(shape[:-1]), limits
            )


def _groups(facts: Iterable[p.StoredLayer]) -> Iterator[Finding]:
    for fact in facts:
        if fact.groups_uneven:
            yield Finding(
                id="uneven-groups",
                severity="alert",
                layer=fact.layer,
                sentence=f"{fact.groups_uneven} groups of its g_idx have more or fewer inputs than "
                "the others: it is damaged, or of another layer",
                evidence={"groups": fact.groups_uneven},
            )
        elif fact.groups_unordered:
            yield Finding(
                id="unordered-groups",
                severity="warning",
                layer=fact.layer,
                sentence="its g_idx is not in order, though the configuration says desc_act "
                "false: kernels that trust it take scales of other groups",
            )


def _sizes(facts: Iterable[p.StoredLayer], limits: Thresholds) -> Iterator[Finding]:
    """Weights that no trained layer has."""
    for fact in facts:
        if fact.not_finite and not (fact.codes and fact.codes.codes_not_finite):
            yield Finding(
                id="not-finite-weights",
                severity="alert",
                layer=fact.layer,
                sentence=f"{fact.not_finite:,} of its weights read as NaN or infinite: scales are "
                "damaged, or the quantiser failed there",
                evidence={"weights": fact.not_finite},
            )
        if fact.rms > limits.weights_most or 0 < fact.rms < limits.weights_least:
            yield Finding(
                id="implausible-scale",
                severity="alert",
                layer=fact.layer,
                sentence=f"its weights have a root mean square of {fact.rms:.2g}, which no trained "
                "layer has: a scale is multiplied where it divides, or is stored as its reciprocal",
                evidence={"rms": fact.rms, "largest": fact.largest},
            )


def _odd(facts: Iterable[p.StoredLayer], limits: Thresholds, known: set[str]) -> Iterator[Finding]:
    """Layers of another size than the others of their kind."""
    kinds: dict[str, list[p.StoredLayer]] = {}
    for fact in facts:
        if fact.rms > 0 and fact.layer not in known:
            kinds.setdefault(fact.layer.rpartition(".")[2], []).append(fact)
    for kind, some in kinds.items():
        middle = median(fact.rms for fact in some)
        for fact in some if len(some) >= KIND else ():
            ratio = max(fact.rms / middle, middle / fact.rms)
            if ratio > limits.odd_scale:
                yield Finding(
                    id="odd-scale",
                    severity="warning",
                    layer=fact.layer,
                    sentence=f"its weights have a root mean square of {fact.rms:.2g}, the median "
                    f"{kind} {middle:.2g}: its scales are those of another layer, or damaged",
                    evidence={"rms": fact.rms, "median": middle, "ratio": ratio},
                )


def _together(found: Iterable[Finding]) -> Iterator[Finding]:
    """Findings of a kind as one, where many layers have it."""
    by_id: dict[str, list[Finding]] = {}
    for each in found:
        by_id.setdefault(each.id, []).append(each)
    for some in by_id.values():
        if len(some) <= FEW:
            for each in some:
                sentence = f"{each.layer}: {each.sentence}"
                yield msgspec.structs.replace(each, sentence=sentence)
            continue
        first = some[0]
        yield msgspec.structs.replace(
            first,
            layer="",
            sentence=f"{len(some)} layers; of {first.layer}: {first.sentence}",
            evidence={"layers": len(some), **first.evidence},
        )
