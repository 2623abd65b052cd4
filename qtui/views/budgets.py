"""Budgets and contexts as typed: ``4.5``, ``22GiB context=32k batch=4 cache=8``, ``kl=.01``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from engine.errors import UsageError
from engine.protocol import CACHE_BITS, Budget

SYNTAX = "4.5 bits, 22GiB context=32k batch=4 cache=8, or kl=.01"
_UNITS = {"gib": 1.0, "gb": 1e9 / 2**30, "mib": 2.0**-10, "mb": 1e6 / 2**30, "g": 1.0}
_SIZE = re.compile(r"(\d{1,9}(?:\.\d*)?|\.\d+)\s*(gib|gb|mib|mb|g)")
_COUNT = re.compile(r"([1-9]\d{0,8})(k|m)?")
_NUMBER = re.compile(r"(\d{1,9}(?:\.\d*)?|\.\d+)(e-?\d{1,2})?")


def parse_budget(text: str, usual: Mapping[str, int] = MappingProxyType({})) -> Budget:
    """A budget as typed.

    Args:
        text: as typed.
        usual: context, batch and bits of the cache of a size in GiB, where they are not typed.

    Raises:
        UsageError: it is none; the message says what would be.
    """
    words = re.sub(r"\s*=\s*", "=", text.lower().strip())
    words = re.sub(r"(\d|\.)\s+(gib|gb|mib|mb|bits?|g)\b", r"\1\2", words)
    words = re.sub(r"\bkl\s+", "kl=", words)
    given: dict[str, float | int] = {}
    for word in words.split():
        name, value = _term(word)
        if name in given:
            raise UsageError(f"{name} is given twice")
        given[name] = value
    figures = [name for name in ("bits", "gib", "kl") if name in given]
    if len(figures) != 1:
        raise UsageError(f"a budget is {SYNTAX}")
    if "gib" not in given and len(given) > 1:
        raise UsageError("context, batch and cache count for a size in GiB only")
    if not given[figures[0]] > 0:
        raise UsageError("a budget is more than 0")
    cache = usual if "gib" in given else {}
    return Budget(**{**cache, **given})  # type: ignore[arg-type]


def parse_context(text: str) -> tuple[int, int]:
    """Context and batch as typed, ``32k`` or ``32k 4``; nothing, or 0, is no context.

    Raises:
        UsageError: it is neither.
    """
    words = re.sub(r"\b(context|batch)\s*=?\s*", " ", text.lower()).replace("×", " ").split()
    if words in ([], ["0"]):
        return 0, 1
    counts = [_COUNT.fullmatch(word) for word in words]
    if len(words) > 2 or None in counts:
        raise UsageError("a context is a number of tokens, and then of sequences: 32k, or 32k 4")
    context, batch = [*(_whole(count) for count in counts if count is not None), 1][:2]
    return context, batch


def _whole(count: re.Match[str]) -> int:
    return int(count[1]) * {"k": 1024, "m": 1024**2}.get(count[2] or "", 1)


def _term(word: str) -> tuple[str, float | int]:
    name, equals, value = word.partition("=")
    if not equals:
        if (size := _SIZE.fullmatch(word)) is not None:
            return "gib", float(size[1]) * _UNITS[size[2]]
        return "bits", _number(re.sub(r"bits?$", "", word), word)
    if name == "kl":
        return "kl", _number(value, word)
    count = _COUNT.fullmatch(value)
    if name not in ("context", "batch", "cache") or count is None:
        raise UsageError(f"{word!r} is no part of a budget: {SYNTAX}")
    whole = _whole(count)
    if name == "cache" and whole not in CACHE_BITS:
        raise UsageError("a cache has numbers of 16, 8 or 4 bits")
    return {"cache": "cache_bits"}.get(name, name), whole


def _number(text: str, word: str) -> float:
    if _NUMBER.fullmatch(text) is None:
        raise UsageError(f"{word!r} is no budget: {SYNTAX}")
    return float(text)
