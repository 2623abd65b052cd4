"""The verdict: what a uniform format costs, where, and the cheapest mix that takes half of it away.

From single effects, measured where they are, so there is one as soon as all layers are estimated,
and a better one as they are measured. The mix is on the convex hull of KL over size: no other mix
of its size has a smaller sum of effects. It has only formats that can run where it is to:
`engine.diagnosis.serving` says which.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias, TypeVar

import msgspec

from engine.diagnosis.serving import Serving, by_kernels, kernels_of
from engine.errors import FormatError
from engine.formats.grammar import parse_format
from engine.formats.storage import can_hold
from engine.recipes.mixes import better_than
from engine.session import (
    KnownEffects,
    Predictor,
    Session,
    own_format,
    recipe_hash,
    uniform_in_steps,
)
from engine.session.artefact import OUTSIDE
from engine.steps import ROWS, drained

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]

MOST = 0.5
"""Share of a uniform format's KL that the mix leaves, at most."""
WORST = 5
"""Layers whose share of the damage is said."""
AT_ONCE = 500
"""Units of a step."""
MANY = 4000
"""Layers from which on a mix uses only one better format, so that a screen need not wait."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a uniform format costs, and the mix that takes most of that away."""

    format: str
    """Of every layer of the body that can hold it."""
    kl: float
    """Of the uniform recipe, nats per token: measured where it was, else the sum of effects."""
    kl_se: float
    ppl: float
    """Of the uniform recipe."""
    baseline_ppl: float
    measured: bool
    """Whether the uniform recipe was measured."""
    layers: int
    """Of the body."""
    share: float
    """Part of the damage that the worst `WORST` layers cause."""
    worst: tuple[str, ...]
    """These layers, the worst first."""
    bits_per_weight: float
    bytes: int
    mix: dict[str, str]
    """The cheapest recipe that leaves `MOST` of the damage at most; empty where there is none."""
    mix_kl: float = math.nan
    mix_ppl: float = math.nan
    mix_measured: bool = False
    """Whether the mix was measured; else it is predicted, as it is once the session holds it."""
    mix_bits: float = math.nan
    mix_bytes: int = 0
    better: tuple[tuple[str, int], ...] = ()
    """Formats of the mix other than `format`, each with its number of layers, most first."""
    to: str = ""
    """The export target that holds the mix; empty for none."""
    unable: int = 0
    """Layers that cannot take `format` there: the target does not hold it, or no kernel does."""
    kernels: tuple[str, ...] = ()
    """Serving kernels that take the mix, or without one `format`: one that takes every layer, else
    as few as do; those of layers that none takes are missing."""


def verdict(session: Session, format: str, serving: Serving | None = None) -> Verdict | None:
    """The verdict on a format; None while an effect of a layer of the body is not known.

    Args:
        session: with a baseline and effects.
        format: canonical, and not a kept one.
        serving: what the mix may have; None for what some serving kernel takes.
    """
    return drained(verdict_in_steps(session, format, serving))


def verdict_in_steps(
    session: Session, format: str, serving: Serving | None = None
) -> Steps[Verdict | None]:
    """The same in steps of some milliseconds, so that a screen may do other things in between."""
    if session.baseline is None or not session.layers.names:
        return None
    serving = serving or by_kernels(session)
    effects = KnownEffects(session)
    column = yield from effects.column_in_steps(format)
    uniform = yield from uniform_in_steps(session, format)
    kl_of: dict[str, float] = {}
    dnll = 0.0
    for place, name in enumerate(uniform):
        if not place % ROWS:
            yield
        effect = column[session.index[name]]
        if effect is None:
            return None
        kl_of[name] = max(0.0, effect[0])
        dnll += effect[1]
    yield
    if not uniform:
        return None
    alone = math.fsum(kl_of.values())
    score = session.scores.get(recipe_hash(uniform)) if session.scores else None
    yield
    known = score is not None and score.done and math.isfinite(score.kl)
    kl, kl_se = alone, effects.error_of_sum(uniform)
    yield
    ppl = session.baseline.ppl * math.exp(min(dnll, 700.0))
    if known and score is not None:
        kl, kl_se, ppl = score.kl, score.kl_se, score.ppl
    worst = sorted(kl_of, key=lambda name: -kl_of[name])[:WORST]
    size = session.size_of(uniform)
    unable = sum(not serving.takes(format, session.index[name]) for name in uniform)
    found = Verdict(
        format=format,
        kl=kl,
        kl_se=kl_se,
        ppl=ppl,
        baseline_ppl=session.baseline.ppl,
        measured=known,
        layers=len(uniform),
        share=math.fsum(kl_of[name] for name in worst) / alone if alone > 0 else math.nan,
        worst=tuple(worst),
        bits_per_weight=size.bits_per_weight,
        bytes=size.bytes,
        mix={},
        to=serving.to,
        unable=unable,
        kernels=kernels_of(session, uniform)[0],
    )
    if not alone > 0:
        return found
    yield
    mix, left = yield from _cheapest_mix(session, uniform, effects, MOST * alone, serving)
    yield
    if left > MOST * alone * (1 + 1e-9):
        return found
    size = session.size_of(mix)
    mix_kl, mix_ppl, mix_measured = yield from _scored(session, mix, effects)
    counted = Counter(held for held in mix.values() if held != format)
    kept = sum(name not in mix for name in uniform)
    return msgspec.structs.replace(
        found,
        mix=mix,
        mix_kl=mix_kl,
        mix_ppl=mix_ppl,
        mix_measured=mix_measured,
        mix_bits=size.bits_per_weight,
        mix_bytes=size.bytes,
        better=tuple(counted.most_common()) + ((("kept", kept),) if kept else ()),
        kernels=kernels_of(session, mix | _stored(session, uniform, mix))[0],
    )


def _scored(
    session: Session, mix: Mapping[str, str], effects: KnownEffects
) -> Steps[tuple[float, float, bool]]:
    """KL and perplexity of a mix, and whether they were measured."""
    score = session.scores.get(recipe_hash(mix)) if session.scores else None
    yield
    if score is not None and score.done and math.isfinite(score.kl):
        return score.kl, score.ppl, True
    held = {
        name: mix.get(name) or session.kept(row) for row, name in enumerate(session.layers.names)
    }
    found = yield from Predictor(session, effects).in_steps(held)
    assert found is not None  # there is a baseline
    return found.kl, found.ppl, False


def _together(effects: KnownEffects, rows: Sequence[int], held: str) -> float:
    """KL of some layers together, as a sum; infinite where one is not known."""
    column = effects.column(held)
    return math.fsum(
        math.inf if (known := column[row]) is None else max(0.0, known[0]) for row in rows
    )


def _cheapest_mix(
    session: Session, uniform: dict[str, str], effects: KnownEffects, aim: float, serving: Serving
) -> Steps[tuple[dict[str, str], float]]:
    """The smallest recipe of better formats whose sum of effects is at most ``aim``.

    Fused groups take one format. Steps along every group's convex hull are taken in the order of
    what they gain per bit, so what is found is optimal for its own size. Layers that an export
    target does not hold in the uniform format take a step in any case.

    Returns:
        The recipe, and its sum of effects; that may be above ``aim`` if no better format is known.
    """
    format = next(iter(uniform.values()))
    better = ("", *_formats(session, format, serving))
    steps: list[tuple[float, tuple[str, ...], str, float]] = []
    for held in (format, *better):
        yield from effects.column_in_steps(held)
    for number, (unit, possible) in enumerate(_units(session, uniform, better, serving)):
        if number % AT_ONCE == 0:
            yield
        found = list(_steps(session, unit, format, possible, effects))
        stays = not serving.to or all(serving.takes(format, session.index[n]) for n in unit)
        if not stays and not found:
            found = [("", 1, 0.0)]
        steps += [
            (gain / more if stays or at else math.inf, unit, held, gain)
            for at, (held, more, gain) in enumerate(found)
        ]
    left = _together(effects, [session.index[name] for name in uniform], format)
    yield
    mix = dict(uniform)
    for worth, unit, held, gain in sorted(steps, key=lambda step: -step[0]):
        if left <= aim and worth < math.inf:
            break
        for name in unit:
            if held:
                mix[name] = held
            else:
                mix.pop(name, None)
        left -= gain
    return mix, left


def _steps(
    session: Session, unit: Sequence[str], format: str, better: Sequence[str], effects: KnownEffects
) -> Iterator[tuple[str, int, float]]:
    """Better formats on a unit's hull: format, more bits, less KL than the one before."""
    rows = [session.index[name] for name in unit]
    points = [(_bits(session, rows, format), _together(effects, rows, format), "")]
    for held in better:
        bits, kl = _bits(session, rows, held), _together(effects, rows, held)
        if bits > points[0][0] and kl < points[0][1]:
            points.append((bits, kl, held))
    hull: list[tuple[int, float, str]] = []
    for point in sorted(points[1:]):
        while hull and point[1] < hull[-1][1] and not _convex([points[0], *hull], point):
            hull.pop()
        if not hull or point[1] < hull[-1][1]:
            hull.append(point)
    for before, after in pairwise([points[0], *hull]):
        yield after[2], after[0] - before[0], before[1] - after[1]


def _convex(hull: Sequence[tuple[int, float, str]], point: tuple[int, float, str]) -> bool:
    """Whether the last point stays on the hull if another follows."""
    a, b = hull[-2], hull[-1]
    return (a[1] - b[1]) * (point[0] - b[0]) > (b[1] - point[1]) * (b[0] - a[0])


def _stored(session: Session, uniform: Mapping[str, str], mix: Mapping[str, str]) -> dict[str, str]:
    """Formats of the layers that the mix leaves as stored and that are stored quantised, as those
    of a GGUF file are: they need a kernel too."""
    dtypes = session.layers.dtypes
    own = {dtype: own_format(dtype) for dtype in set(dtypes) if _quantised(own_format(dtype))}
    if not own:
        return {}
    rows = {name: session.index[name] for name in uniform if name not in mix}
    return {name: own[dtypes[row]] for name, row in rows.items() if dtypes[row] in own}


def _quantised(format: str) -> bool:
    try:
        return not parse_format(format).kept
    except FormatError:
        return False  # a dtype, or a layout that is no format of ours


def _formats(session: Session, format: str, serving: Serving) -> Sequence[str]:
    """Formats that may be better: those with known effects, or only the next step up.

    Of the same family, so that one file can hold the mix and one kernel family serves it; for an
    export target, of any, since it says what it holds.
    """
    known = dict.fromkeys(k.format for k in session.effects.known("degrade") if k.by == "layer")
    family = parse_format(format).family
    able = [
        each
        for each in known
        if each != format and (serving.to or parse_format(each).family == family)
    ]
    if len(session.layers.names) <= MANY:
        return able
    step = better_than(format)
    if serving.to and not _held(session, step, serving):
        return [each for each in able if _held(session, each, serving)][:1]
    return () if step == "kept" else (step,)


def _held(session: Session, format: str, serving: Serving) -> bool:
    """Whether some layer of the body can take a format."""
    layers = session.layers
    rows = {layers.shapes[row]: row for row, role in enumerate(layers.roles) if role not in OUTSIDE}
    return any(serving.takes(format, row) for row in rows.values())


def _units(
    session: Session, uniform: Mapping[str, str], better: Sequence[str], serving: Serving
) -> Iterator[tuple[tuple[str, ...], Sequence[str]]]:
    """The layers of the body that take one format, each with those that may be better for them.

    Where a target has one format for many layers, and they may be left as stored, that is all.
    """
    layers = session.layers
    fmt = parse_format(next(iter(uniform.values())))
    found: dict[object, list[str]] = {}
    alone: set[object] = set()
    for name in uniform:
        row = session.index[name]
        key: object = group if (group := layers.groups[row]) >= 0 else -2 - row
        if (many := serving.alike(fmt, row)) is not None:
            if serving.alike(None, row) is None:
                alone.add(key)
            else:
                key = many
        found.setdefault(key, []).append(name)
    for key, names in found.items():
        rows = [session.index[name] for name in names]
        possible = better[:1] if key in alone else better
        yield (
            tuple(names),
            [held for held in possible if all(serving.takes(held, row) for row in rows)],
        )


def _bits(session: Session, rows: Sequence[int], held: str) -> int:
    """Stored bits of a unit; -1 where one of its layers cannot hold the format."""
    shapes = session.layers.shapes
    if held and not all(can_hold(held, shapes[row]) for row in rows):
        return -1
    return sum(session.bits_in(row, held) for row in rows)
