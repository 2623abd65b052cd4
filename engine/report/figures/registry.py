"""All figures: those of qtui, then those registered by plugins."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from engine.plugins import load_plugins
from engine.report.figures import activations, advice, layers, outputs, sensitivity, stored, weights
from engine.report.figures.declaration import (
    ALWAYS,
    EFFECTS,
    Document,
    Figure,
    Group,
    Source,
)

_FIGURES: dict[str, Figure] = {
    figure.id: figure
    for group in (
        layers.IDENTITY, sensitivity.WHICH, layers.HOLDS, sensitivity.KL, sensitivity.NLL,
        sensitivity.SCORES, advice.ADVICE, weights.ERRORS, weights.OUTLIERS, weights.HEALTH,
        stored.STORED, activations.ACTIVATIONS, outputs.OUTPUTS,
    )
    for figure in group
}  # fmt: skip
"""In the order of the columns of a CSV file."""


OF_EFFECTS: tuple[Source, ...] = ("effect", "estimate")


def register_figure(figure: Figure) -> None:
    """Add a figure after the existing ones.

    Call it while a plugin loads (see `engine.plugins`), before anything is shown. The id must be a
    lower-case word: filters and JSON keys use it.

    Raises:
        ValueError: the id is not such a word; it is a filter word but not a number; or a figure, a
            CSV column or a JSON key with this name exists.
    """
    if not (figure.id.isidentifier() and figure.id == figure.id.lower()):
        raise ValueError(f"figure {figure.id!r}: the id must be a lower-case word")
    if figure.filter is not None and not figure.quantity.number:
        raise ValueError(
            f"figure {figure.id!r}: a filter compares numbers, not {figure.quantity.id}"
        )
    if figure.id in _FIGURES:
        raise ValueError(f"figure {figure.id!r}: a figure with this id exists")
    for other in _FIGURES.values():
        if figure.csv is not None and other.csv is not None and figure.csv.name == other.csv.name:
            raise ValueError(
                f"figure {figure.id!r}: figure {other.id!r} has the CSV column {figure.csv.name!r}"
            )
        if taken := set(figure.json) & set(other.json):
            raise ValueError(
                f"figure {figure.id!r}: figure {other.id!r} has the key {next(iter(taken)).path!r}"
            )
    _FIGURES[figure.id] = figure
    _changed()


def unregister_figure(id: str) -> None:
    """Remove a registered figure; for tests."""
    _FIGURES.pop(id, None)
    _changed()


def figures() -> tuple[Figure, ...]:
    """All figures, in the order of the columns of a CSV file.

    Raises:
        EngineError: a plugin cannot be loaded.
    """
    load_plugins()
    return _all()


def figure(id: str) -> Figure:
    """The figure with this id.

    Raises:
        KeyError: there is none.
    """
    if id not in _FIGURES:
        load_plugins()
    return _FIGURES[id]


@lru_cache(maxsize=1)
def _all() -> tuple[Figure, ...]:
    return tuple(_FIGURES.values())


def column_figures() -> tuple[Figure, ...]:
    """Figures with a column in the layer table, from the left."""
    load_plugins()
    return _columns()


@lru_cache(maxsize=1)
def _columns() -> tuple[Figure, ...]:
    found = [(each.column, each) for each in _all() if each.column]
    return tuple(each for _, each in sorted(found, key=lambda pair: pair[0].rank))


def filter_figures() -> dict[str, Figure]:
    """Figures that are filter words, by word, in the order offered."""
    load_plugins()
    return _filters()


@lru_cache(maxsize=1)
def _filters() -> dict[str, Figure]:
    found = [(each.filter, each) for each in _all() if each.filter]
    return {each.id: each for _, each in sorted(found, key=lambda pair: pair[0].rank)}


def pane_figures(group: Group) -> list[Figure]:
    """Figures under a heading of the side pane, in order."""
    found = [
        (each.pane.place, each) for each in figures() if each.pane and each.pane.group == group
    ]
    return [each for _, each in sorted(found, key=lambda pair: pair[0])]


def expert_figures() -> list[Figure]:
    """Figures of the experts of a fused layer, in order."""
    found = [(each.experts, each) for each in figures() if each.experts]
    return [each for _, each in sorted(found, key=lambda pair: pair[0].place)]


def csv_figures(columns: Iterable[str] = ()) -> list[Figure]:
    """Figures to save as CSV, in order.

    Args:
        columns: ids of the table columns to save; empty for every figure.
    """
    shown = frozenset(columns)
    return [each for each in figures() if each.csv is not None and _is_saved(each, shown)]


def _is_saved(figure: Figure, shown: frozenset[str]) -> bool:
    assert figure.csv is not None
    beside = (figure.id,) if figure.csv.beside is None else figure.csv.beside
    if beside == EFFECTS:
        beside = tuple(each.id for each in _columns() if each.read.source in OF_EFFECTS)
    return not shown or beside == ALWAYS or not shown.isdisjoint(beside)


@lru_cache(maxsize=64)
def _json(document: Document, source: Source, under: str) -> tuple[tuple[str, Figure], ...]:
    return tuple(
        (each.path.removeprefix(under), figure)
        for figure in _all()
        for each in figure.json
        if each.document == document
        and figure.read.source == source
        and each.path.startswith(under)
    )


def json_figures(
    document: Document, source: Source, under: str = ""
) -> tuple[tuple[str, Figure], ...]:
    """Figures of a layer's entry in a document that are read from a source, with their paths.

    Args:
        document: which document.
        source: what the figures are read from.
        under: a part of the entry; paths are relative to it.
    """
    load_plugins()
    return _json(document, source, under)


def _changed() -> None:
    for cached in (_all, _columns, _filters, _json):
        cached.cache_clear()
