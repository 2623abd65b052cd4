"""What a figure declares: one number or word about a layer.

A declaration yields the column of the layer table and its sort order, the filter word with its
completion and help, the line of the side pane, the JSON key, the CSV column, the line of the help
screen and of ``docs/figures.md``. Nothing here knows a terminal: figures that are drawn in a
special way have a drawer in ``qtui``, registered under their id.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from engine.diagnosis.serving import Serving
from engine.protocol import EffectKey, ExpertsReady
from engine.report.figures.quantity import Quantity
from engine.session import Session

Value: TypeAlias = str | int | float | bool | tuple[int, ...]
Reader: TypeAlias = Callable[[int], Value | None]
"""Returns the figure of a row; None if it is not known."""
Number: TypeAlias = Callable[[int], float | None]
"""The same for a figure that is a number; nan if it is known to be none."""
Source: TypeAlias = Literal[
    "row", "weights", "activations", "error", "output", "effect", "estimate"
]
"""What a figure is read from: the layer listing; a layer's `LayerWeights`, or its
`LayerActivations`; a `WeightError` of one format; the `OutputError` of the format held; an effect
(`Sensitivity`, else `Estimate`); an `Estimate` only."""
Changes: TypeAlias = Literal["names", "holds", "marks", "facts"]
"""What changes a figure: a new listing of the layers; a toggle; a mark; measurements."""
Document: TypeAlias = Literal["triage", "sweep", "diagnose"]
Group: TypeAlias = Literal["effect", "errors", "weights"]
"""A heading of the side pane."""

ALWAYS: tuple[str, ...] = ("*",)
"""Always saved in a CSV file."""
EFFECTS: tuple[str, ...] = ("effects",)
"""Saved in a CSV file together with any column of an effect."""


class Context(NamedTuple):
    """The context that rows are read in. A figure is bound to it once, then read row by row."""

    session: Session
    key: EffectKey = EffectKey("degrade", "")
    """The effects and errors to read."""
    marked: Collection[str] = ()
    """Names of the marked layers."""
    serving: Serving | None = None
    """What layers may be advised; None for what some serving kernel takes."""


@dataclass(frozen=True)
class Reading:
    """How a figure is read; made by the functions of `engine.report.figures.reading`."""

    bind: Callable[[Context], Reader]
    source: Source = "row"
    value: Callable[[Any, Session], Value | None] | None = None
    """Its value in one fact of its source, if it is read from facts."""
    changes: Changes = "facts"


@dataclass(frozen=True)
class Column:
    """A column of the layer table."""

    heading: str
    """Its title, if that never changes."""
    width: int
    """Minimum width in cells."""
    rank: int = 99
    """Its place from the left; if there is no room, of two columns the one with the higher rank
    goes first."""
    falling: bool = True
    """Whether the largest values come first by default."""
    left: bool = False
    """Whether its title is aligned left."""
    quiet: bool = False
    """Whether its values are drawn dim."""
    sorted_by: str = ""
    """The figure to sort by, if not itself."""
    then_by: str = ""
    """The figure that rows without a value are sorted by, after those with one; empty leaves them
    in the model's order."""
    legend: tuple[str, ...] = ()
    """Lines of the help screen that explain it; ``{plus_minus}`` and similar are replaced by
    signs."""


@dataclass(frozen=True)
class FilterWord:
    """The id as a word of the filter: ``kl>1e-3``."""

    example: str
    """A comparison, as it is typed after the id."""
    rank: int = 99
    """Its place in completions."""
    common: bool = False
    """Whether the help screen shows its example."""


@dataclass(frozen=True)
class PaneLine:
    """A figure in the side pane: in a line with others, or a column of a table by format."""

    group: Group
    label: str
    place: int = 99
    """Place in its group; columns of an effect are dropped from the last if there is no room."""
    line: int = 9
    """Which line it is in, where lines have several figures."""
    width: int = 10
    """Of a column."""
    text: Callable[[Any], str] | None = None
    """Formats its value, if not as its quantity does."""
    quiet: bool = False
    """Whether it is drawn dim."""
    unless_zero: bool = False
    """Whether it is left out if it is 0."""


@dataclass(frozen=True)
class JsonPath:
    """The key in a layer's entry of a document: ``measured.kl``, ``errors.*.relative``."""

    document: Document
    path: str


@dataclass(frozen=True)
class CsvName:
    """The column of a CSV file."""

    name: str
    """With its unit, if any: ``kl_nats_per_token``."""
    beside: tuple[str, ...] | None = None
    """Table columns it is saved with: its own if None, all if `ALWAYS`, those of effects if
    `EFFECTS`; if empty it is saved only when every figure is requested."""


@dataclass(frozen=True)
class ExpertValues:
    """The figure for every expert of a fused layer."""

    read: Callable[[ExpertsReady, str], Sequence[float]]
    """One entry per expert, in a format; empty if not known."""
    name: str
    """The column of a CSV file."""
    place: int = 99
    by_format: bool = False
    """Whether it differs by format."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of a layer; it does not appear where the field is None or empty."""

    id: str
    title: str
    """A short description."""
    help: str
    """One line: description and unit."""
    quantity: Quantity
    read: Reading
    column: Column | None = None
    filter: FilterWord | None = None
    pane: PaneLine | None = None
    json: tuple[JsonPath, ...] = ()
    csv: CsvName | None = None
    experts: ExpertValues | None = None
