"""The session's recipe as commands change it: formats checked, bits counted, history walked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from engine import protocol as p
from engine.errors import FormatError, InfeasibleError, UsageError
from engine.quant import parse_format, stored_bits, why_not_built, why_not_held
from engine.session import Session


def change(session: Session, layers: Sequence[str], format: str) -> p.RecipeChanged | None:
    """What letting ``layers`` hold ``format`` changes; None where they hold it already.

    Raises:
        UsageError: an unknown layer.
        FormatError: a format that does not parse, is not built yet, or cannot hold a layer.
    """
    rows = [_row(session, layer) for layer in layers]
    wanted = [session.kept(row) if format == "kept" else format for row in rows]
    after: list[str] = []
    for row, text in zip(rows, wanted, strict=True):
        parsed = parse_format(text)
        why = why_not_built(parsed) or why_not_held(parsed, session.layers.shapes[row])
        if why is not None:
            raise FormatError(f"{session.layers.names[row]}: {why}")
        after.append(str(parsed))
    moved = [
        (row, held)
        for row, held in zip(rows, after, strict=True)
        if session.layers.holds[row] != held
    ]
    if not moved:
        return None
    return _changed(session, "set", [row for row, _ in moved], [held for _, held in moved])


def undo(session: Session) -> p.RecipeChanged:
    """What taking back the last change changes.

    Raises:
        InfeasibleError: there is nothing to take back.
    """
    if not session.position:
        raise InfeasibleError("nothing to undo")
    step = session.history[session.position - 1]
    return _changed(session, "undo", [_row(session, name) for name in step.layers], step.before)


def redo(session: Session) -> p.RecipeChanged:
    """What making the last change that was taken back again changes.

    Raises:
        InfeasibleError: there is none.
    """
    if session.position >= len(session.history):
        raise InfeasibleError("nothing to redo")
    step = session.history[session.position]
    return _changed(session, "redo", [_row(session, name) for name in step.layers], step.after)


def uniform(
    session: Session, format: str
) -> tuple[dict[str, str], list[p.Fallback], p.RecipeChanged | None]:
    """One format for the body, head and embedding kept.

    Returns:
        The recipe; the layers the format cannot hold, which are kept; the change from the
        session's recipe to it, None where there is none.

    Raises:
        FormatError: a format that does not parse or is not built yet.
    """
    parsed = parse_format(format)
    if (why := why_not_built(parsed)) is not None:
        raise FormatError(why)
    recipe: dict[str, str] = {}
    fallbacks: list[p.Fallback] = []
    for row, name in enumerate(session.layers.names):
        if session.layers.blocks[row] < 0:
            continue
        if (why := why_not_held(parsed, session.layers.shapes[row])) is not None:
            fallbacks.append(p.Fallback(layer=name, format=str(parsed), why=why))
        elif str(parsed) != session.kept(row):
            recipe[name] = str(parsed)
    return recipe, fallbacks, replace(session, recipe)


def replace(session: Session, recipe: dict[str, str]) -> p.RecipeChanged | None:
    """The change from the session's recipe to another; None where they are the same.

    Raises:
        UsageError: an unknown layer.
        FormatError: a format that does not parse, is not built yet, or cannot hold its layer.
    """
    for name in recipe:
        _row(session, name)
    rows: list[int] = []
    after: list[str] = []
    for row, name in enumerate(session.layers.names):
        parsed = parse_format(recipe.get(name, session.kept(row)))
        why = why_not_built(parsed) or why_not_held(parsed, session.layers.shapes[row])
        if why is not None:
            raise FormatError(f"{name}: {why}")
        if session.layers.holds[row] != str(parsed):
            rows.append(row)
            after.append(str(parsed))
    return _changed(session, "set", rows, after) if rows else None


def _row(session: Session, layer: str) -> int:
    row = session.row(layer)
    if row is None:
        raise UsageError(f"the checkpoint has no layer {layer!r}")
    return row


def _changed(
    session: Session,
    how: Literal["set", "undo", "redo"],
    rows: Sequence[int],
    after: Sequence[str],
) -> p.RecipeChanged:
    bits = [
        stored_bits(parse_format(held), session.layers.shapes[row])
        for row, held in zip(rows, after, strict=True)
    ]
    return p.RecipeChanged(
        how=how,
        layers=[session.layers.names[row] for row in rows],
        before=[session.layers.holds[row] for row in rows],
        after=list(after),
        bits=bits,
    )
