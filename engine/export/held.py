"""What a target can hold of a recipe, and the nearest that it can; no tensors, so that the terminal
asks while a recipe is tuned."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import msgspec

from engine.errors import FormatError
from engine.export.target import Target, Weight, target_named
from engine.formats.catalogue import BASES, KEPT, METHODS
from engine.formats.grammar import (
    Format,
    Method,
    folds,
    parse_format,
    why_not_built,
    without_folds,
)
from engine.formats.storage import stored_bits, why_not_held
from engine.session import Session

SCALED = "layers with the same input share its scale: give its whole fused group this format"
"""Why `Target.folds` needs fused groups of one format, as the rest of a sentence."""
_GROUPS = (16, 32, 64, 128, 256)
_FEWER = 10
"""A bit less counts as much as this many more: the nearest format errs on the side of quality."""
_ABOUT = 0.05
"""A share of stored bits below which fewer are no loss."""
_OTHER_FAMILY = 0.3
"""A format of another family is as far as one with this share of bits more."""
_ADDED = ("a8", "hqq", "imatrix")
"""Methods without which some tools have no format."""


def weights_of(session: Session) -> list[Weight]:
    """The layers of a session, in the model's order."""
    layers, read = session.layers, session.checkpoint
    return [
        Weight(
            name=name,
            kind=layers.kinds[row],
            block=layers.blocks[row],
            role=layers.roles[row],
            shape=tuple(layers.shapes[row]),
            dtype=layers.dtypes[row] if read is None else read.dtype,
            group=layers.groups[row],
            tied=session.tied and layers.roles[row] in ("head", "embedding"),
        )
        for row, name in enumerate(layers.names)
    ]


def why_not(target: Target, fmt: Format, weight: Weight) -> str | None:
    """Why a target cannot hold a weight in a format, apart from other layers; None if it can."""
    why = target.why_not_expressed(fmt, weight.shape, weight.dtype)
    if why is None and not fmt.kept:
        why = target.why_not_weight(fmt, weight)
    return why


def refused(target: Target, weights: Sequence[Weight], recipe: Mapping[str, str]) -> dict[str, str]:
    """The layers of a recipe that a target cannot hold, with reasons that name the format.

    Layers that must have one format are refused where they differ, if each could be held alone.

    Args:
        target: to write to.
        weights: all layers.
        recipe: formats by layer; others are kept.
    """
    formats = {name: parse_format(text) for name, text in recipe.items()}
    found = {}
    for weight in weights:
        fmt = formats.get(weight.name)
        if (
            fmt is not None
            and (why := _remembered(target.name, fmt, _nameless(weight))) is not None
        ):
            found[weight.name] = why if str(fmt) in why else f"{fmt}: {why}"
    if found:
        return found
    for names, held in _unlike(target, weights, formats).values():
        other = {name: str(fmt or KEPT) for name, fmt in zip(names, held, strict=True)}
        usual = Counter(other.values()).most_common(1)[0][0]
        found |= {
            name: f"{text}, and {usual} elsewhere: {target.why_alike}"
            for name, text in other.items()
            if text != usual
        }
    for names in _unfolded(target, weights, formats):
        found |= {
            name: f"{formats[name]}: {SCALED}"
            for name in names
            if name in formats and folds(formats[name])
        }
    return found


def mixed(target: Target, weights: Sequence[Weight], recipe: Mapping[str, str]) -> dict[str, str]:
    """Layers of fused groups with several formats, where what reads the target cannot use them."""
    if not target.mixed:
        return {}
    groups: dict[int, list[str]] = defaultdict(list)
    for weight in weights:
        if weight.group >= 0:
            groups[weight.group].append(weight.name)
    return {
        name: target.mixed
        for names in groups.values()
        if len({recipe.get(name, KEPT) for name in names}) > 1
        for name in names
    }


def untied(target: Target, weights: Sequence[Weight], recipe: Mapping[str, str]) -> dict[str, str]:
    """The changed ones of a tied head and embedding, where the target stores both apart then."""
    tied = [weight.name for weight in weights if weight.tied]
    changed = [name for name in tied if recipe.get(name, KEPT) != KEPT]
    return dict.fromkeys(changed, target.unties) if target.unties and len(tied) > 1 else {}


def nearest(target: Target, fmt: Format, weight: Weight) -> str:
    """The nearest format that a target holds for a weight, or ``kept``.

    The one with about as many bits, fewer being farther than more, and rather of the same family;
    then with as many weights to a scale, then with the same signs and methods.
    """
    return _nearest(target.name, fmt, _nameless(weight))


def nearest_recipe(
    target: Target, weights: Sequence[Weight], recipe: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """By layer that a target cannot hold as it is: the nearest format or ``kept``, and why.

    Where layers must have one format, the most frequent one stays. Of the others, those with more
    bits are kept if the target allows that.
    """
    by_name = {weight.name: weight for weight in weights}
    changed: dict[str, tuple[str, str]] = {}
    held = dict(recipe)
    for name, why in refused(target, weights, recipe).items():
        if name not in recipe:
            continue  # kept, where others of its kind are not
        if why_not(target, fmt := parse_format(recipe[name]), by_name[name]) is not None:
            changed[name] = nearest(target, fmt, by_name[name]), why.removeprefix(f"{fmt}: ")
            held[name] = changed[name][0]
    formats = {name: parse_format(text) for name, text in held.items() if text != KEPT}
    for names, _ in _unlike(target, weights, formats).values():
        usual = Counter(str(formats.get(name, KEPT)) for name in names).most_common(1)[0][0]
        for name in names:
            now = formats.get(name)
            if str(now or KEPT) == usual:
                continue
            weight = by_name[name]
            more = (
                now is not None
                and usual != KEPT
                and _bits(now, weight) > _bits(parse_format(usual), weight)
            )
            keeps = more and target.alike(None, weight) is None
            why = changed[name][1] if name in changed else target.why_alike
            changed[name] = KEPT if keeps else usual, why
    for names in _unfolded(target, weights, formats):
        for name in names:
            if name in formats and folds(formats[name]):
                why = changed[name][1] if name in changed else SCALED
                changed[name] = str(without_folds(formats[name])), why
    return {name: to for name, to in changed.items() if to[0] != recipe.get(name, KEPT)}


def _bits(fmt: Format, weight: Weight) -> int:
    return stored_bits(fmt, weight.shape)


def _unlike(
    target: Target, weights: Sequence[Weight], formats: Mapping[str, Format]
) -> dict[str, tuple[list[str], list[Format | None]]]:
    """Weights that must have one format and do not, by their key, with their formats."""
    found: dict[str, tuple[list[str], list[Format | None]]] = {}
    for weight in weights:
        fmt = formats.get(weight.name)
        fmt = None if fmt is None or fmt.kept else fmt
        if (key := target.alike(fmt, weight)) is not None:
            names, held = found.setdefault(key, ([], []))
            names.append(weight.name)
            held.append(fmt)
    return {key: group for key, group in found.items() if len(set(map(str, group[1]))) > 1}


def _unfolded(
    target: Target, weights: Sequence[Weight], formats: Mapping[str, Format]
) -> list[list[str]]:
    """Fused groups with several formats, one of which scales the input that all of them share."""
    if not target.folds or not any(map(folds, formats.values())):
        return []
    groups: dict[int, list[str]] = defaultdict(list)
    for weight in weights:
        if weight.group >= 0 and weight.role != "experts":
            groups[weight.group].append(weight.name)
    return [
        names
        for names in groups.values()
        if len({str(formats.get(name, KEPT)) for name in names}) > 1
        and any(name in formats and folds(formats[name]) for name in names)
    ]


def _nameless(weight: Weight) -> Weight:
    """What is alike in all blocks, so that answers are remembered.

    A name stays where a target may ask for it: outside of blocks.
    """
    if weight.block < 0:
        return weight
    return msgspec.structs.replace(weight, name=weight.kind, block=0, group=-1)


@lru_cache(maxsize=8192)
def _remembered(target: str, fmt: Format, weight: Weight) -> str | None:
    return why_not(target_named(target), fmt, weight)


@lru_cache(maxsize=1024)
def _nearest(target: str, fmt: Format, weight: Weight) -> str:
    name, best = (
        KEPT,
        (_far(_stored_bits(fmt, weight), 16 * math.prod(weight.shape)), 0.0, 0.0, 0.0),
    )
    for candidate in _candidates(fmt):
        if why_not_held(candidate, weight.shape) is not None:
            continue
        far = _distance(fmt, candidate, weight)
        if far < best and _remembered(target, candidate, weight) is None:
            best, name = far, str(candidate)
    return name


def _candidates(fmt: Format) -> Iterator[Format]:
    """Formats that might be nearest: every base with every scale, and with fewer methods."""
    methods = [fmt.methods]
    methods += [
        tuple(kept for kept in fmt.methods if kept.name != left.name) for left in fmt.methods
    ]
    methods.append(())
    methods += [
        tuple(sorted((*some, Method(added)), key=_order))
        for added in _ADDED
        if all(method.name != added for method in fmt.methods)
        for some in (fmt.methods, ())
    ]
    for candidate in _plain(tuple(BASES)):
        keys = BASES[candidate.name].keys
        kept = fmt.options if all(key in keys for key, _ in fmt.options) else ()
        for some in dict.fromkeys(methods):
            for options in dict.fromkeys((kept, ())):
                try:
                    found = msgspec.structs.replace(candidate, methods=some, options=options)
                    found.__post_init__()
                except FormatError:
                    continue
                if why_not_built(found) is None:
                    yield found
    if fmt.group_size is not None and fmt.group_size not in _GROUPS:
        for symmetric in (True, False):
            try:
                yield Format(fmt.name, fmt.strategy, fmt.group_size, symmetric)
            except FormatError:
                continue


@lru_cache(maxsize=4)
def _plain(bases: tuple[str, ...]) -> tuple[Format, ...]:
    """Formats without methods; of these bases, since plugins may add some."""
    found: dict[Format, None] = {}
    for name in bases:
        base = BASES[name]
        if base.kept:
            continue
        scales = [(base.strategy, base.group_size), ("channel", None), ("tensor", None)]
        scales += [("group", size) for size in _GROUPS] + [("block", size) for size in _GROUPS]
        for strategy, size in scales:
            for symmetric in (True, False):
                try:
                    found[Format(name, strategy, size, symmetric)] = None
                except FormatError:
                    continue
    return tuple(found)


def _order(method: Method) -> int:
    return list(METHODS).index(method.name)


def _distance(fmt: Format, other: Format, weight: Weight) -> tuple[float, float, float, float]:
    lost = len(set(fmt.methods) ^ set(other.methods)) + (fmt.options != other.options)
    if other.family == fmt.family:
        far = _far(fmt.bits, other.bits) + (0.0 if other.name == fmt.name else 0.01)
    else:
        far = _OTHER_FAMILY + _far(_stored_bits(fmt, weight), stored_bits(other, weight.shape))
    if other.strategy == "tensor" != fmt.strategy:
        far += _OTHER_FAMILY
    return (far, *_scales(fmt, other), float(lost))


def _far(bits: float, other: float) -> float:
    """How far ``other`` bits are from ``bits``, as a share of them."""
    more = (other - bits) / bits
    return abs(more) if more >= -_ABOUT else -_FEWER * more


def _stored_bits(fmt: Format, weight: Weight) -> int:
    """Bits of a weight, also in a format that its shape does not allow."""
    if why_not_held(fmt, weight.shape) is None:
        return stored_bits(fmt, weight.shape)
    return fmt.bits * math.prod(weight.shape)


def _scales(fmt: Format, other: Format) -> tuple[float, float]:
    """How unlike the scales are; fewer weights to a scale is nearer than more."""
    if (other.strategy, other.group_size) == (fmt.strategy, fmt.group_size):
        far = 0.0
    elif fmt.group_size and other.group_size:
        ratio = other.group_size / fmt.group_size
        far = 1 / ratio if ratio < 1 else 100 * ratio
    else:
        far = 1000.0 if other.group_size else 2000.0
    return far, float(other.symmetric != fmt.symmetric)
