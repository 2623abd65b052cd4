"""Parts of a document filled from values by path, with keys for figures of plugins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Generic, TypeVar, cast, get_args, get_type_hints

import msgspec
from msgspec import UNSET

from engine.report.json import finite
from engine.report.schema import Part

Entry = TypeVar("Entry", bound=Part)

_ELEMENT = re.compile(r"(\w+)\[\d+\]")


class Template(Generic[Entry]):
    """Fills a part of a document for many layers, from values in a fixed order.

    Args:
        base: the Struct to make. Keys of figures that plugins registered are added to it.
        paths: of the values: ``kurtosis``, ``outliers.count``, ``dppl_ci95[0]``.
    """

    def __init__(self, base: type[Entry], paths: Sequence[str]) -> None:
        self._leaves: list[tuple[str, int]] = []
        self._arrays: dict[str, list[int]] = {}
        below: dict[str, list[tuple[str, int]]] = {}
        for at, path in enumerate(paths):
            head, _, rest = path.partition(".")
            if rest:
                below.setdefault(head, []).append((rest, at))
            elif (element := _ELEMENT.fullmatch(path)) is not None:
                self._arrays.setdefault(element[1], []).append(at)
            else:
                self._leaves.append((path, at))
        self._below = [
            (head, [at for _, at in inner], Template(_part_at(base, head), [p for p, _ in inner]))
            for head, inner in below.items()
        ]
        names = [name for name, _ in self._leaves] + [*self._arrays, *below]
        self._type = _with_keys(
            base, [each for each in names if each not in base.__struct_fields__]
        )

    def fill(self, values: Sequence[object]) -> Entry:
        """The part with these values, one per path.

        A value of None is left out, and so is a part whose values are all None; a number that is
        not finite is ``null``.
        """
        fields: dict[str, Any] = {}
        for name, at in self._leaves:
            value = values[at]
            if value is not None:
                fields[name] = _json(value)
        for name, places in self._arrays.items():
            if (first := values[places[0]]) is not None:
                fields[name] = (_json(first), *(_json(values[at]) for at in places[1:]))
        for name, places, template in self._below:
            inner = [values[at] for at in places]
            if any(value is not None for value in inner):
                fields[name] = template.fill(inner)
        return self._type(**fields)


def _json(value: object) -> object:
    return finite(value) if isinstance(value, float) else value


def _part_at(base: type[Part], name: str) -> type[Part]:
    """The Struct of a field; a bare one for a key that is not declared."""
    for each in get_args(get_type_hints(base).get(name)):
        if isinstance(each, type) and issubclass(each, Part):
            return each
    return Part


def _with_keys(base: type[Entry], names: Sequence[str]) -> type[Entry]:
    if not names:
        return base
    fields = [(name, Any, UNSET) for name in names]
    made = msgspec.defstruct(base.__name__, fields, bases=(base,), frozen=True, kw_only=True)
    return cast("type[Entry]", made)
