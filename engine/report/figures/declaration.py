"""What a figure is: one number or word about a layer, declared once.

From a declaration are made: the column of the layer table and its order, the word of a filter with
its completion and help, the line of the side pane, the key in JSON, the column in CSV, the line of
the help screen and of ``docs/figures.md``. Nothing here knows a terminal: figures that are drawn in
a way of their own have a drawer in ``qtui``, registered under their id.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from engine.protocol import EffectKey, ExpertsReady
from engine.report.figures.quantity import Quantity
from engine.session import Session

Value: TypeAlias = str | int | float | bool | tuple[int, ...]
Reader: TypeAlias = Callable[[int], Value | None]
"""The figure of a row; None where it is not known."""
Number: TypeAlias = Callable[[int], float | None]
"""The same of a figure that is a number; nan where it is known to be none."""
Source: TypeAlias = Literal["row", "weights", "error", "effect", "estimate"]
"""What a figure is read from: the listing of layers; a layer's `LayerWeights`; a `WeightError`, of
one format; an effect, a `Sensitivity` or else an `Estimate`; an `Estimate` alone."""
Changes: TypeAlias = Literal["names", "holds", "marks", "facts"]
"""What a figure changes with: a new listing of the layers; a toggle; a mark; measurements."""
Document: TypeAlias = Literal["triage", "sweep"]
Group: TypeAlias = Literal["effect", "errors", "weights"]
"""A heading of the side pane."""

ALWAYS: tuple[str, ...] = ("*",)
"""In a CSV file whatever columns are chosen."""
EFFECTS: tuple[str, ...] = ("effects",)
"""In a CSV file where any column of an effect is chosen."""


class Context(NamedTuple):
    """What rows are read in. A figure is bound to one once, and then read for row after row."""

    session: Session
    key: EffectKey = EffectKey("degrade", "")
    """Whose effects and errors are read."""
    marked: Collection[str] = ()
    """Names of the marked layers."""


@dataclass(frozen=True)
class Reading:
    """How a figure is read; made by the functions of `engine.report.figures.reading`."""

    bind: Callable[[Context], Reader]
    source: Source = "row"
    value: Callable[[Any, Session], Value | None] | None = None
    """Its value in one fact of its source, where it is read from facts."""
    changes: Changes = "facts"


@dataclass(frozen=True)
class Column:
    """A column of the layer table."""

    heading: str
    """Its title, where that is always the same."""
    width: int
    """In cells, at least."""
    rank: int = 99
    """Its place from the left; of two columns the one with the higher rank goes first where there
    is no room."""
    falling: bool = True
    """Whether the largest come first unless asked otherwise."""
    left: bool = False
    """Whether its title stands at the left."""
    quiet: bool = False
    """Whether its values are drawn dim."""
    sorted_by: str = ""
    """The figure that gives its order, where that is another."""
    legend: tuple[str, ...] = ()
    """Lines of the help screen that explain it; ``{plus_minus}`` and the like are signs."""


@dataclass(frozen=True)
class FilterWord:
    """The id as a word of the filter: ``kl>1e-3``."""

    example: str
    """A comparison, as it is typed after the id."""
    rank: int = 99
    """Its place among the words that are offered."""
    common: bool = False
    """Whether the help screen has its example."""


@dataclass(frozen=True)
class PaneLine:
    """A figure in the side pane: among others in a line, or a column of a table by format."""

    group: Group
    label: str
    place: int = 99
    """In its group; of columns of an effect the first goes last where there is no room."""
    line: int = 9
    """Among lines of several figures, which one it stands in."""
    width: int = 10
    """Of a column."""
    text: Callable[[Any], str] | None = None
    """Its text, where that is another than its quantity's."""
    quiet: bool = False
    """Whether it is drawn dim."""
    unless_zero: bool = False
    """Whether it is left out where it is 0."""


@dataclass(frozen=True)
class JsonPath:
    """The key of a layer's entry in a document: ``measured.kl``, ``errors.*.relative``."""

    document: Document
    path: str


@dataclass(frozen=True)
class CsvName:
    """The column of a CSV file."""

    name: str
    """With the unit where there is one: ``kl_nats_per_token``."""
    beside: tuple[str, ...] | None = None
    """Columns of the table with which it is saved: its own where None, all where `ALWAYS`, those of
    effects where `EFFECTS`; where empty it is saved when every figure is asked for."""


@dataclass(frozen=True)
class ExpertValues:
    """The figure of every expert of a fused layer."""

    read: Callable[[ExpertsReady, str], Sequence[float]]
    """An entry an expert, in a format; empty where not known."""
    name: str
    """The column of a CSV file."""
    place: int = 99
    by_format: bool = False
    """Whether it is another in every format."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of a layer; what is None or empty it does not appear in."""

    id: str
    title: str
    """What it is, in a few words."""
    help: str
    """One line: what it is, and its unit."""
    quantity: Quantity
    read: Reading
    column: Column | None = None
    filter: FilterWord | None = None
    pane: PaneLine | None = None
    json: tuple[JsonPath, ...] = ()
    csv: CsvName | None = None
    experts: ExpertValues | None = None
