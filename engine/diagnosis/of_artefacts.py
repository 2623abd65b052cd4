"""Findings about a finished checkpoint, from its comparison with the original; no arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from engine import protocol as p
from engine.diagnosis.finding import ORDER, Finding
from engine.diagnosis.of_files import file_findings
from engine.diagnosis.thresholds import Thresholds, standard_thresholds
from engine.session import Compared

FAR = 5.0
"""How many times the median layer's error is another weight's: solvers and few bits stay within
three times."""
HALF = 0.5
"""And the least error, as a share of the weight's norm: of the weights of two layers that have
nothing to do with each other the difference is 1.4 times the norm of one."""
MANY = 0.25
"""Share of layers made from other weights from which the parent is another."""
DISPLACED = 0.01
"""Share of displaced weights from which on they tell of another parent: quanto, which adjusts zero
points after it has rounded, displaces 0.007."""
WINS = 0.1
"""Share of the whole KL from which a layer given back is worth naming."""
AGREE = 0.25
"""Share of equal first choices from which outputs agree: noise shares a few percent."""


_MISTAKES = {
    "off-by-one": "off by one step everywhere: zero points of one version (GPTQ v1, v2) were "
    "stored, and are read as the other's",
    "scale-factor": "{factor:.3g} times the original: a global scale multiplies where it divides, "
    "or is missing",
    "swapped-codes": "right with every two neighbours exchanged: codes were packed in the other "
    "order",
    "permuted-rows": "right with its heads' rows in another order: rotary halves were permuted on "
    "one side only",
    "transposed": "the transpose of the original's",
    "other-scales": "right up to a factor for every group: these are scales of another layer",
}
"""What a mistake is, after the layer and "is" or "are"."""


def artefact_findings(compared: Compared, limits: Thresholds | None = None) -> list[Finding]:
    """What stands out of a finished checkpoint, the worst first; none of a clean one.

    Args:
        compared: what is known of it, with an original or by itself.
        limits: from where on a figure is a finding; None for those of the profile ``standard``.
    """
    found = [
        *file_findings(compared, limits or standard_thresholds()),
        *_unreadable(compared),
        *_unmatched(compared),
        *_declared(compared),
        *_mistakes(compared),
        *_rotated(compared),
        *_not_finite(compared),
        *_other_weights(compared),
        *_worth_keeping(compared),
    ]
    return sorted(found, key=lambda each: ORDER[each.severity])


def _unreadable(compared: Compared) -> Iterator[Finding]:
    facts: dict[str, p.StoredLayer | p.ArtefactLayer] = {**compared.stored, **compared.layers}
    for fact in facts.values():
        if fact.refused:
            yield Finding(
                id="unreadable-layer",
                severity="alert",
                layer=fact.layer,
                sentence=f"{fact.layer} cannot be read: {fact.refused}",
            )


def _unmatched(compared: Compared) -> Iterator[Finding]:
    missing = compared.opened.unmatched
    if missing:
        count = f"{len(missing)} layers" if len(missing) > 1 else "one layer"
        yield Finding(
            id="missing-layers",
            severity="alert",
            layer=missing[0] if len(missing) == 1 else "",
            sentence=f"it lacks {count} of the original, or has them in another shape: "
            + ", ".join(missing[:3])
            + (" …" if len(missing) > 3 else ""),
            evidence={"layers": len(missing)},
        )


def _declared(compared: Compared) -> Iterator[Finding]:
    """Layers that are read as something else than their configuration says."""
    by_reading: dict[tuple[str, str], list[str]] = {}
    for fact in compared.layers.values():
        if fact.read_as:
            by_reading.setdefault((fact.declared, fact.read_as), []).append(fact.layer)
    for (declared, read_as), layers in by_reading.items():
        yield Finding(
            id="declared-otherwise",
            severity="warning",
            layer=layers[0] if len(layers) == 1 else "",
            sentence=f"{_those(layers)} declared {declared} and read as {read_as}; programs that "
            "trust the configuration read other weights",
            evidence={"layers": len(layers)},
        )


def _mistakes(compared: Compared) -> Iterator[Finding]:
    """Layers whose error one mistake explains."""
    found: dict[str, list[p.ArtefactLayer]] = {}
    for fact in compared.layers.values():
        if fact.mistake:
            found.setdefault(fact.mistake, []).append(fact)
    for mistake, facts in found.items():
        first = facts[0]
        what = _MISTAKES[mistake].format(factor=first.factor)
        yield Finding(
            id=mistake,
            severity="alert",
            layer=first.layer if len(facts) == 1 else "",
            sentence=f"{_those([fact.layer for fact in facts])} {what}",
            evidence={
                "layers": len(facts),
                "relative": first.error.relative,
                "undone": first.left,
                "factor": first.factor,
            },
        )


def _those(layers: list[str]) -> str:
    """The subject of a sentence about some layers, with its verb."""
    if len(layers) == 1:
        return f"{layers[0]} is"
    return f"{len(layers)} layers ({layers[0]} …) are"


def _not_finite(compared: Compared) -> Iterator[Finding]:
    found = [
        fact.layer
        for fact in compared.layers.values()
        if not fact.refused and not math.isfinite(fact.error.relative)
    ]
    if found:
        yield Finding(
            id="not-finite",
            severity="alert",
            layer=found[0] if len(found) == 1 else "",
            sentence=f"{_those(found)} read with NaN or infinite values: scales are "
            "damaged, or the quantiser failed there",
            evidence={"layers": len(found)},
        )


def _other_weights(compared: Compared) -> Iterator[Finding]:
    changed = [
        fact
        for fact in compared.layers.values()
        if fact.rounding != "same"
        and not (fact.refused or fact.mistake or _unsolved(fact))
        and math.isfinite(fact.error.relative)
    ]
    if not changed:
        return
    middle = median(fact.error.relative for fact in changed)
    wrong = [fact for fact in changed if _is_another(fact, middle)]
    if len(wrong) > MANY * len(changed) and _agrees(compared):
        yield Finding(
            id="rotated",
            severity="warning",
            sentence=f"{len(wrong)} of {len(changed)} layers differ wholly, and "
            f"{_outputs(compared)}: they were rotated, or reordered between layers, in a way that "
            "is not undone here; errors of their weights mean nothing",
            evidence={"layers": len(wrong), "relative": middle},
        )
        return
    if len(wrong) > MANY * len(changed):
        yield Finding(
            id="other-weights",
            severity="alert",
            sentence=f"{len(wrong)} of {len(changed)} layers err by more than half of their norm: "
            "these are not this original's weights, or their scales are wrong",
            evidence={"layers": len(wrong), "relative": middle},
        )
        return
    for fact in wrong:
        yield Finding(
            id="other-weights",
            severity="alert",
            layer=fact.layer,
            sentence=f"{fact.layer} errs by {fact.error.relative:.0%} of its norm, the median "
            f"layer by {middle:.1%}: it is another revision's or another layer's weight, or its "
            "scales are wrong",
            evidence={"relative": fact.error.relative, "median": middle, "steps": fact.steps},
        )
    # A rotation that was fitted leaves a doubt as large as what a tuned parent would.
    tuned = [
        fact
        for fact in changed
        if fact.rounding == "other" and fact not in wrong and not fact.rotated
    ]
    share = median(fact.displaced for fact in tuned) if tuned else 0.0
    if len(tuned) > MANY * len(changed) and share > DISPLACED:
        yield Finding(
            id="other-parent",
            severity="warning",
            sentence=f"{len(tuned)} of {len(changed)} layers were rounded from slightly different "
            "weights: it was made from a tuned, merged or other revision of this original",
            evidence={"layers": len(tuned), "displaced": share},
        )


def _is_another(fact: p.ArtefactLayer, middle: float) -> bool:
    relative = fact.error.relative
    far = relative > FAR * middle or middle > HALF
    return fact.rounding == "other" and relative > HALF and far


def _unsolved(fact: p.ArtefactLayer) -> bool:
    return fact.rotated.endswith("not undone")


def _rotated(compared: Compared) -> Iterator[Finding]:
    """Rotations between layers, which change no output; and those that the model must undo."""
    facts = [fact for fact in compared.layers.values() if fact.rotated]
    kinds = [
        (what, [fact.layer for fact in facts if what in fact.rotated.split(" and ")])
        for what in ("residual stream", "heads")
    ]
    folded = [f"its {what} in {len(layers)} layers" for what, layers in kinds if layers]
    if folded:
        yield Finding(
            id="rotated",
            severity="info",
            sentence=f"it is rotated: {' and '.join(folded)}. Errors of weights are those with the "
            "rotations taken back" + (f"; {_outputs(compared)}" if compared.score else ""),
            evidence={"layers": len(facts)},
        )
    before = [fact for fact in facts if "input" in fact.rotated]
    if before:
        hidden = sum(map(_unsolved, before))
        undone = f"; in {hidden} by a matrix that is not known, so that their errors mean nothing"
        yield Finding(
            id="rotated-inputs",
            severity="warning",
            layer=before[0].layer if len(before) == 1 else "",
            sentence=f"{_those([fact.layer for fact in before])} rotated on the side of the input"
            + (undone if hidden else ", by a Hadamard matrix")
            + ": programs must rotate what comes in, and those that do not get noise"
            + (f"; run as it is stored, {_outputs(compared)}" if compared.score else ""),
            evidence={"layers": len(before)},
        )


def _agrees(compared: Compared) -> bool:
    return compared.score is not None and compared.score.top1 >= AGREE


def _outputs(compared: Compared) -> str:
    """Whether its outputs are the original's, where that was measured."""
    score = compared.score
    assert score is not None
    agree = "agree" if _agrees(compared) else "do not agree"
    figures = f"KL·10³ {1000 * score.kl:.3g}, {score.top1:.0%} top-1"
    return f"outputs {agree} with the original's ({figures})"


def _worth_keeping(compared: Compared) -> Iterator[Finding]:
    score = compared.score
    if score is None or not score.kl > 0:
        return
    for win in sorted(compared.restored.values(), key=lambda each: -each.kl):
        share = win.kl / score.kl
        if share >= WINS and win.kl > 2 * win.kl_se:
            yield Finding(
                id="worth-keeping",
                severity="info",
                layer=win.layer,
                sentence=f"{win.layer} given back alone takes {share:.0%} of the KL away: "
                "keep it in more bits next time",
                evidence={"kl": win.kl, "kl_se": win.kl_se, "share": share},
            )
