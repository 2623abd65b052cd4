"""The scope of a toggle: the layer under the cursor, or a set of layers around it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

from engine.session import Layers, Session
from qtui.views.text import UNICODE, Glyphs, printable, short_name

Scope: TypeAlias = Literal["layer", "marks", "block", "kind", "group", "filter"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
SCOPE_TITLES: dict[Scope, str] = {
    "layer": "the layer under the cursor",
    "marks": "the marked layers",
    "block": "the block of the layer",
    "kind": "all layers of its kind",
    "group": "its fused group",
    "filter": "all layers that the filter shows",
}
"""What each scope is, in words."""
MAX_KINDS = 4
"""Kinds of a fused group that are named."""


class Shared(NamedTuple):
    """Rows by what they share, each in the model's order."""

    kinds: dict[str, list[int]]
    blocks: dict[int, list[int]]
    groups: dict[int, list[int]]
    outside: list[int]
    """Head and embedding."""


class ScopeContext(NamedTuple):
    """Everything that a scope depends on: cursor, marks, filter."""

    session: Session
    shared: Shared
    row: int | None
    """Of the layer under the cursor."""
    marked: Collection[str]
    filter: str = ""
    """Text of the filter; empty for none."""
    matching: Sequence[int] = ()
    """Rows that the filter shows, in the model's order."""


def index_layers(layers: Layers) -> Shared:
    """Index a listing, once."""
    kinds: dict[str, list[int]] = {}
    blocks: dict[int, list[int]] = {}
    groups: dict[int, list[int]] = {}
    for row, (kind, block, group) in enumerate(
        zip(layers.kinds, layers.blocks, layers.groups, strict=True)
    ):
        kinds.setdefault(kind, []).append(row)
        if block >= 0:
            blocks.setdefault(block, []).append(row)
        if group >= 0:
            groups.setdefault(group, []).append(row)
    outside = [row for row, role in enumerate(layers.roles) if role in ("head", "embedding")]
    return Shared(kinds, blocks, groups, outside)


def why_not(scope: Scope, here: ScopeContext) -> str:
    """Why a scope is unavailable now; empty if it is available."""
    layers, row = here.session.layers, here.row
    if scope == "marks":
        return "" if here.marked else "no layer is marked"
    if scope == "filter":
        if not here.filter:
            return "there is no filter"
        return "" if here.matching else "no layer matches the filter"
    if row is None:
        return "there is no layer under the cursor"
    if scope == "block" and layers.blocks[row] < 0:
        return "this layer is in no block"
    if scope == "group" and layers.groups[row] < 0:
        return "this layer is in no fused group"
    if scope in ("block", "kind", "group") and len(_rows_of_group(scope, here)) < 2:
        return f"this layer is alone in its {'fused group' if scope == 'group' else scope}"
    return ""


def possible(scope: Scope, here: ScopeContext) -> Scope:
    """``scope`` if it is available now, else the layer under the cursor."""
    return "layer" if why_not(scope, here) else scope


def next_scope(scope: Scope, here: ScopeContext, step: int = 1) -> Scope:
    """The next available scope after this one, or before it."""
    at = SCOPES.index(scope)
    round_ = (SCOPES[(at + step * i) % len(SCOPES)] for i in range(1, len(SCOPES) + 1))
    return next((other for other in round_ if not why_not(other, here)), "layer")


def _rows_of_group(scope: Scope, here: ScopeContext) -> Sequence[int]:
    """Rows of the cursor's block, kind or fused group."""
    layers, row = here.session.layers, here.row
    if row is None:
        return ()
    if scope == "block":
        return here.shared.blocks.get(layers.blocks[row], ())
    if scope == "kind":
        return here.shared.kinds.get(layers.kinds[row], ())
    return here.shared.groups.get(layers.groups[row], ())


def rows_in_scope(scope: Scope, here: ScopeContext) -> Sequence[int]:
    """Rows in scope, in the model's order."""
    if scope == "layer":
        return () if here.row is None else (here.row,)
    if scope == "marks":
        rows = (here.session.row(name) for name in here.marked)
        return sorted(row for row in rows if row is not None)
    if scope == "filter":
        return here.matching if here.filter else ()
    return _rows_of_group(scope, here)


def in_scope(scope: Scope, here: ScopeContext) -> tuple[str, ...]:
    """Layers in scope, in the model's order."""
    names = here.session.layers.names
    return tuple(names[row] for row in rows_in_scope(scope, here))


def scope_test(scope: Scope, here: ScopeContext) -> Callable[[int], bool]:
    """Test whether a row is in scope, without listing all that are."""
    layers, row = here.session.layers, here.row
    if scope == "marks":
        return lambda other: layers.names[other] in here.marked
    if scope == "filter":
        return lambda other: bool(here.filter) and _within(other, here.matching)
    if row is None:
        return lambda other: False
    if scope == "layer":
        return lambda other: other == row
    if scope == "kind":
        return lambda other: layers.kinds[other] == layers.kinds[row]
    column = layers.blocks if scope == "block" else layers.groups
    own = column[row]
    return lambda other: own >= 0 and column[other] == own


def _within(row: int, rows: Sequence[int]) -> bool:
    at = bisect_left(rows, row)
    return at < len(rows) and rows[at] == row


def describe(scope: Scope, here: ScopeContext, glyphs: Glyphs = UNICODE) -> str:
    """The scope in words: ``block 3: 7 layers``.

    Head and embedding are named if they are among many: they are rarely intended.
    """
    layers, row = here.session.layers, here.row
    if scope == "marks":
        number = len(here.marked)
        words = f"{number} marked layer{'' if number == 1 else 's'}"
        if here.filter:
            shown = set(here.matching)
            hidden = sum(here.session.index.get(name) not in shown for name in here.marked)
            words += f", {hidden} hidden" if hidden else ""
    elif scope == "filter":
        quotes = '""' if glyphs.ascii else "“”"
        asked = printable(here.filter)
        if glyphs.ascii:
            asked = asked.encode("ascii", "backslashreplace").decode()
        words = f"filter {quotes[0]}{asked}{quotes[1]}: {_number(len(here.matching))}"
    elif row is None:
        return "no layer"
    elif scope == "layer":
        return printable(short_name(layers.names[row], layers.blocks[row], 0).strip())
    else:
        rows = _rows_of_group(scope, here)
        if scope == "block":
            words = f"block {layers.blocks[row]}: {_number(len(rows))}"
        elif scope == "kind":
            words = f"kind {printable(layers.kinds[row])}: {_number(len(rows))}"
        else:
            words = f"{_fused(here, rows, glyphs)}: {_number(len(rows))}"
    test = scope_test(scope, here)
    outside = list(dict.fromkeys(layers.roles[row] for row in here.shared.outside if test(row)))
    return f"{words}, including {' and '.join(outside)}" if outside else words


def _number(layers: int) -> str:
    return f"{layers} layer{'' if layers == 1 else 's'}"


def _fused(here: ScopeContext, rows: Sequence[int], glyphs: Glyphs) -> str:
    """``0 q+k+v``: the block, and the kinds without the end they have in common."""
    layers = here.session.layers
    if not rows:
        return "fused group"
    kinds = list(dict.fromkeys(layers.kinds[row] for row in rows))
    ends = {kind.rpartition("_")[2] for kind in kinds}
    end = f"_{ends.pop()}" if len(ends) == 1 and len(kinds) > 1 else ""
    parts = [kind.removesuffix(end) for kind in kinds[:MAX_KINDS]]
    if len(kinds) > MAX_KINDS:
        parts.append(glyphs.ellipsis)
    block = layers.blocks[rows[0]]
    return (f"{block} " if block >= 0 else "") + printable("+".join(parts))
