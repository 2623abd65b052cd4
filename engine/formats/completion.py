"""Completes and explains a format while it is typed. Text only, no tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod

import msgspec

from engine.errors import FormatError
from engine.formats.catalogue import BASES, KEPT, METHODS, Keys
from engine.formats.grammar import parse_format, why_not_built, without_blanks
from engine.formats.storage import stored_bits, why_not_held

TYPICAL = (4096, 4096)
"""Shape for which a completion shows bits per weight."""

NOT_BUILT = "not built yet"

_GROUPS = ("-g32", "-g64", "-g128", "-g256")
"""Offered for a format that takes any group size."""
_FIRST = ("int4", "int8", "int3", "int6", "int5", "int2", "int7", KEPT, "bf16", "fp16", "fp32")
"""Offered first; all other formats follow in the order of their families."""


class Completion(msgspec.Struct, frozen=True):
    """One completion."""

    text: str
    """The completed text."""
    says: str
    """In few words: bits per weight, what to type next, or why it cannot be used."""
    usable: bool = True
    """Whether a layer can hold it as is, or once a number follows."""


def complete_format(
    text: str, limit: int = 12, shape: Sequence[int] | None = None
) -> list[Completion]:
    """Completions of ``text``, usable ones first, at most ``limit``.

    Each is a format or the beginning of one. The text itself comes first if it is a format; the
    list is empty if no format begins like this.

    Args:
        text: as typed.
        limit: completions at most.
        shape: of the layers that would hold it, ``[out, in]`` or ``[experts, out, in]``, used to
            compute bits per weight; None uses `TYPICAL`.
    """
    typed = without_blanks(text)
    found: dict[str, tuple[tuple[bool, bool, bool], Completion]] = {}
    for candidate in _candidates(typed):
        if candidate not in found and (judged := _judged(candidate, shape)) is not None:
            usable, says = judged
            # Sorting is stable: among equals the order of the grammar stays.
            rank = (candidate != typed, not usable, not candidate.startswith(typed))
            completion = Completion(candidate, says, usable or candidate.endswith("="))
            found[candidate] = (rank, completion)
    ranked = sorted(found.values(), key=lambda one: one[0])
    return [completion for _, completion in ranked[: max(0, limit)]]


def explain_format(text: str, shape: Sequence[int] | None = None) -> tuple[str | None, str]:
    """What a text means as a format, as a sentence.

    Args:
        text: as typed.
        shape: of the layer that would hold it, ``[out, in]`` or ``[experts, out, in]``; None for
            no particular layer.

    Returns:
        The canonical text and its bits per weight; or None, and why it cannot be used.
    """
    typed = without_blanks(text)
    if not typed:
        return None, "type a format, such as int4-g128"
    if typed == KEPT:
        return KEPT, "left in the checkpoint's dtype"
    try:
        format = parse_format(typed)
        if (why := why_not_built(format)) is not None:
            return None, why
        if shape is not None and (why := why_not_held(format, shape)) is not None:
            return None, why
        sizes = tuple(shape) if shape is not None else TYPICAL
        bits = stored_bits(format, sizes) / prod(sizes)
    except FormatError as error:
        return None, str(error)
    of = "" if shape is not None else f" in a weight of {' x '.join(map(str, TYPICAL))}"
    return str(format), f"{format}: {_bits(bits)} per weight{of}"


def _bits(bits: float) -> str:
    return f"{bits:.2f}".removesuffix(".00") + " bits"


def _judged(candidate: str, shape: Sequence[int] | None) -> tuple[bool, str] | None:
    """Whether a candidate can be used, and its description; None if no format begins like this."""
    if candidate == KEPT:
        return True, "as stored"
    try:
        format = parse_format(candidate)
    except FormatError:
        return _begun(candidate)
    sizes = TYPICAL if shape is None else tuple(shape)
    if (why := why_not_held(format, sizes)) is not None:
        # Name what a typical layer holds: a user may look for it here.
        return None if why_not_held(format, TYPICAL) is not None else (False, why)
    try:
        size = _bits(stored_bits(format, sizes) / prod(sizes))
    except FormatError:
        size = "size not known in advance"
    usable = why_not_built(format) is None
    return usable, size if usable else f"{size}, {NOT_BUILT}"


def _begun(candidate: str) -> tuple[bool, str] | None:
    """Description of a text that is incomplete."""
    if not candidate.endswith("="):
        return None
    owner = candidate.rpartition("+")[2] if "+" in candidate else candidate
    name, _, key = owner.removesuffix("=").rpartition(":")
    keys = _keys_of(name.partition(":")[0])
    number = keys.get(key)
    if number is None:
        return None
    unit = "%" if number.percent else ""
    try:
        parse_format(f"{candidate}{number.default or number.high}{unit}")
    except FormatError:
        return None
    says = f"{number.low:g}{unit} to {number.high:g}{unit}"
    says += f", else {number.default:g}" if number.default is not None else ""
    return False, says


def _candidates(typed: str) -> Iterator[str]:
    """Texts that may continue ``typed``, in the order of the grammar; not all are formats."""
    yield typed
    names = [*_FIRST, *(name for name in BASES if name not in _FIRST)]
    for name in names:
        if name.startswith(typed):
            needs = BASES[name].needs if name in BASES else ""
            yield f"{name}+{needs}" if needs else name
    for stem, partial in _splits(typed):
        for option in _continuations(stem):
            if option.startswith(partial):
                yield stem + option
    if typed and not any(mark in typed for mark in ":+"):
        yield from (name for name in names if typed in name and not name.startswith(typed))


def _splits(typed: str) -> Iterator[tuple[str, str]]:
    """Pairs of what is complete and what is still being typed: after a mark, or nothing."""
    last = max(typed.rfind(mark) for mark in "-:+")
    if last > 0:
        yield typed[:last], typed[last:]
    yield typed, ""


def _continuations(stem: str) -> Iterator[str]:
    """Options, keys and methods that may follow ``stem``."""
    last = stem.rpartition("+")[2]
    if last == stem:
        yield from _options_of(stem)
    keys = _keys_of(last.partition(":")[0])
    yield from (f":{key}" + ("" if number is None else "=") for key, number in keys.items())
    yield from (f"+{name}" for name in METHODS)


def _options_of(spelled: str) -> Iterator[str]:
    """The options of a format, ignoring what follows its name."""
    name = _longest(spelled, BASES)
    for option in BASES[name].options if name else ():
        yield from _GROUPS if option == "gN" else (f"-{option}",)


def _keys_of(spelled: str) -> Keys:
    """The keys of a method or a format, ignoring the value or options after its name."""
    tables = {name: rule.keys for name, rule in METHODS.items()}
    tables |= {name: base.keys for name, base in BASES.items()}
    return tables.get(_longest(spelled, tables), {})


def _longest(spelled: str, names: Iterable[str]) -> str:
    """The longest of the names that a text begins with; empty if there is none."""
    return max((each for each in names if spelled.startswith(each)), key=len, default="")
