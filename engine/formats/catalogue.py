"""All formats and methods: what each takes, and which combinations are impossible.

The rules of the grammar, without tensors: `engine.formats.grammar` parses and prints by these
tables. Formats come from the families in `engine.formats.families` and from plugins.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec

from engine.plugins import load_plugins

Strategy: TypeAlias = Literal["group", "channel", "tensor", "block"]
Value: TypeAlias = float | bool
"""Value of a key: a number, or True for a flag."""


class Number(msgspec.Struct, frozen=True):
    """A number that an option or a method takes: ``low <= x <= high``."""

    low: float
    high: float
    default: float | None = None
    percent: bool = False


Keys: TypeAlias = dict[str, Number | None]
"""Keys in printing order; None is a flag."""

GroupRule: TypeAlias = Callable[[str, Strategy | None, int | None], str | None]
"""Why a format (by name) cannot have a strategy and group size; None if it can."""


class Base(msgspec.Struct, frozen=True):
    """A format before options and methods, and its rules in the grammar."""

    bits: int
    """Bits of one code."""
    strategy: Strategy | None = None
    """What shares a scale by default; None if nothing is scaled."""
    group_size: int | None = None
    symmetric: bool = True
    """Whether codes are symmetric about 0, with no zero point stored."""
    options: tuple[str, ...] = ()
    """The ``-options`` it takes: ``channel``, ``tensor``, ``sym``, ``asym``, ``gN`` for any group
    size, ``blockN`` with a number for square blocks of that size."""
    keys: Keys = {}
    methods: tuple[str, ...] = ()
    """Methods it can have in addition to those that go with every format."""
    needs: str = ""
    """A method that it requires."""
    needs_because: str = ""
    kept: bool = False
    """Whether weights are only cast, not quantised."""
    why_no_groups: GroupRule | None = None
    """Rejects strategies and group sizes; None if it has only its default."""
    fixing: tuple[str, ...] = ()
    """Keys with which all scales are found together, before any column is rounded."""
    stores_order: bool = False
    """Whether a column order chosen by GPTQ can be stored."""
    why_no_order: str = ""
    """Why GPTQ cannot reorder its columns; empty if it can."""
    row_multiple: int = 1
    """The row length must be a multiple of this."""
    family: str = ""
    """Its family; set by `register_family`."""


class MethodRule(msgspec.Struct, frozen=True):
    """The keys a method takes, and whether every format can have it."""

    why: str = ""
    """Why a format that does not list it in `Base.methods` cannot have it; empty if all can."""
    value: Number | None = None
    keys: Keys = {}


METHODS: dict[str, MethodRule] = {
    "smooth": MethodRule(value=Number(1e-6, 1, default=0.5), keys={"online": None}),
    "hadamard": MethodRule(),
    "awq": MethodRule(keys={"online": None}),
    "clip": MethodRule("it has no range that a search could narrow"),
    "hqq": MethodRule("it moves zero points, which only integer formats have"),
    "imatrix": MethodRule("it weighs the search of llama.cpp's quantisers for scales and codes"),
    "gptq": MethodRule(
        "it chooses the codes of a row by its own search",
        keys={"damp": Number(1e-6, 1, default=0.01), "actorder": None, "static": None},
    ),
    "outlier": MethodRule(
        "it is the split of LLM.int8(), which goes with int8",
        value=Number(1e-6, 1000, default=6.0),
    ),
    "a8": MethodRule("8-bit integer activations multiply integer weights", keys={"static": None}),
}
"""In the order in which they are applied and printed."""


class _Formats(Mapping[str, Base]):
    """All formats by name; families and plugins are loaded on the first lookup."""

    def __init__(self) -> None:
        self.found: dict[str, Base] = {}

    def __getitem__(self, name: str) -> Base:
        if name not in self.found:
            self._load()
        return self.found[name]

    def __contains__(self, name: object) -> bool:
        if name not in self.found:
            self._load()
        return name in self.found

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self.found)

    def __len__(self) -> int:
        self._load()
        return len(self.found)

    @staticmethod
    def _load() -> None:
        # By name: the families import this module.
        importlib.import_module("engine.formats.families")
        load_plugins()


KEPT = "kept"
"""The word for the checkpoint's own dtype; prompts accept it in addition to the grammar."""
GROUP = re.compile(r"g([0-9]{1,7})")
"""How the option ``gN`` is written."""

_NAME = re.compile(r"[a-z0-9_.]+(-[a-z0-9_.]+)?")
_FORMATS = _Formats()
BASES: Mapping[str, Base] = _FORMATS


def add_formats(family: str, formats: Mapping[str, Base]) -> None:
    """Add the formats of a family; called by `engine.formats.family.register_family`.

    Raises:
        ValueError: a name is taken, means something else already, or the grammar cannot parse it.
    """
    known = {**_FORMATS.found, **formats}
    for name in formats:
        if name in _FORMATS.found:
            raise ValueError(f"there is a format {name!r} already")
        if name == KEPT:
            raise ValueError(f"{name!r} is the word for a layer that is left as it is stored")
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} cannot be the name of a format: use small letters, digits, '_' and '.', "
                "and at most one '-'"
            )
    for name in known:
        stem, _, option = name.partition("-")
        if option and stem in known and takes_option(known[stem], option):
            raise ValueError(f"{name!r} would be two formats: {stem} takes the option '-{option}'")
    for name, base in formats.items():
        _FORMATS.found[name] = msgspec.structs.replace(base, family=family)


def takes_option(base: Base, word: str) -> bool:
    """Whether ``-word`` is an option of a format."""
    return ("gN" if GROUP.fullmatch(word) else word) in base.options and word != "gN"


def why_impossible(
    name: str,
    strategy: Strategy | None,
    group_size: int | None,
    symmetric: bool,
    methods: Sequence[tuple[str, Sequence[str]]],
    options: Sequence[str] = (),
) -> str | None:
    """Why these parts make no format; None if they do.

    Args:
        name: A key of `BASES`.
        strategy: What shares a scale.
        group_size: Weights that share a scale, where the strategy is a group or a block.
        symmetric: Whether codes are symmetric about 0.
        methods: Keys of each method, by its name.
        options: Keys of the format itself.
    """
    base = BASES[name]
    if (why := _why_no_such_groups(name, strategy, group_size)) is not None:
        return why
    if symmetric != base.symmetric and not {"sym", "asym"} & set(base.options):
        return f"{name} has no choice between symmetric and asymmetric"
    names = [method for method, _ in methods]
    if base.kept and names:
        return f"{name} does not quantise weights, so '+{names[0]}' has no effect"
    for method, keys in methods:
        rule = METHODS[method]
        if rule.why and method not in base.methods:
            return f"'+{method}' does not go with {name}: {rule.why}"
        if method == "gptq":
            why = _why_not_solved(name, strategy, keys, options)
            if why is not None:
                return why
    if "clip" in names and "hqq" in names:
        return "'+clip' and '+hqq' both set the range of a group: use one of them"
    if "hqq" in names and symmetric:
        return "'+hqq' moves zero points, and a symmetric format has none: add '-asym'"
    if base.needs and base.needs not in names:
        return f"{base.needs_because}: write '{name}+{base.needs}'"
    return None


def _why_not_solved(
    name: str, strategy: Strategy | None, keys: Sequence[str], options: Sequence[str]
) -> str | None:
    """Why GPTQ cannot have these keys with this format."""
    base = BASES[name]
    groups = strategy in ("group", "block")
    fixing = next((key for key in options if key in base.fixing), None)
    if "static" in keys and not groups:
        return "'+gptq:static' fixes the scales of groups in advance, and there are no groups"
    if "static" in keys and fixing is not None:
        return (
            f"':{fixing}' needs all maxima in advance, since they are quantised together: "
            "leave ':static' out"
        )
    if "actorder" in keys and base.why_no_order:
        return f"'+gptq:actorder' reorders columns, and {base.why_no_order}"
    moving = groups and "static" not in keys and fixing is None
    if "actorder" in keys and moving and not base.stores_order:
        return f"{name} stores no column order: write '+gptq:actorder:static'"
    return None


def _why_no_such_groups(name: str, strategy: Strategy | None, group_size: int | None) -> str | None:
    base = BASES[name]
    if (strategy, group_size) == (base.strategy, base.group_size):
        return None
    if base.why_no_groups is not None:
        return base.why_no_groups(name, strategy, group_size)
    return f"{name} does not come with strategy {strategy!r} and group size {group_size}"
