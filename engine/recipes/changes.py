"""Changes of the session's recipe: formats checked, bits counted, undo and redo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

import msgspec

from engine import protocol as p
from engine.errors import FormatError, InfeasibleError, UsageError
from engine.formats.grammar import (
    Format,
    folds,
    needs_calibration,
    parse_built,
    parse_format,
    why_not_alone,
    without_calibration,
    without_folds,
)
from engine.formats.storage import stored_bits, why_not_held
from engine.recipes.file import nearest
from engine.recipes.mixes import asked_of, held_instead
from engine.recipes.tensor_classes import Row
from engine.session import Session, Tried
from engine.session.tried import differing


def change(session: Session, layers: Sequence[str], format: str) -> p.RecipeChanged | None:
    """The event of setting ``layers`` to ``format``; None if nothing changes.

    Raises:
        UsageError: an unknown layer.
        FormatError: a format that does not parse, is not built yet, or cannot hold a layer because
            of its shape or its inputs.
    """
    rows = [_row(session, layer) for layer in layers]
    wanted = [_built(session.kept(row) if format == "kept" else format) for row in rows]
    refused = [
        (row, why)
        for row, parsed in zip(rows, wanted, strict=True)
        if (why := _why_not_row(session, row, parsed)) is not None
    ]
    if refused:
        raise FormatError(refusal([session.layers.names[row] for row in rows], refused, session))
    after = [str(parsed) for parsed in wanted]
    moved = [
        (row, held)
        for row, held in zip(rows, after, strict=True)
        if session.layers.holds[row] != held
    ]
    if not moved:
        return None
    return _changed(session, "set", [row for row, _ in moved], [held for _, held in moved])


def whole(session: Session, layers: Mapping[str, str]) -> p.RecipeChanged | None:
    """The event of setting the whole recipe; None if nothing changes.

    Args:
        session: whose recipe it becomes.
        layers: formats by layer; all others are left as stored.

    Raises:
        UsageError: an unknown layer.
        FormatError: see `change`; the message names the layer.
    """
    rows = {_row(session, layer): _built(held) for layer, held in layers.items() if held != "kept"}
    for row, parsed in rows.items():
        if (why := _why_not_row(session, row, parsed)) is not None:
            raise FormatError(f"{session.layers.names[row]}: {why}")
    left = {session.index[layer]: "" for layer in session.changed}
    wanted = left | {row: str(parsed) for row, parsed in rows.items()}
    moved = {
        row: held or session.kept(row)
        for row, held in sorted(wanted.items())
        if (held or session.kept(row)) != session.layers.holds[row]
    }
    return _changed(session, "set", list(moved), list(moved.values())) if moved else None


def refusal(layers: Sequence[str], refused: Sequence[tuple[int, str]], session: Session) -> str:
    """Why layers cannot take a format together: how many cannot, and why the first of them.

    Args:
        layers: all that were to take it.
        refused: rows that cannot, with the reason.
        session: whose rows they are.
    """
    row, why = refused[0]
    if len(layers) == 1:
        return f"{layers[0]}: {why}"
    few = f"{len(refused)} of {len(layers)} layers cannot hold it"
    return f"{few}: {why}" if len(refused) > 1 else f"{few}: {session.layers.names[row]}: {why}"


def take(session: Session, number: int) -> p.RecipeChanged | None:
    """The event of going back to a recipe that was tried; None if it is the current one.

    Raises:
        UsageError: there is no recipe of that number.
    """
    _tried(session, number)
    apart = differing(session, session.at, number)
    if not apart:
        return None
    rows = [session.index[layer] for layer in apart]
    held = [after for _, after in apart.values()]
    return msgspec.structs.replace(_changed(session, "set", rows, held), to=number)


def named(session: Session, number: int, name: str) -> p.RecipeNamed | None:
    """The event of naming a recipe that was tried; None if it has that name.

    Raises:
        UsageError: there is no recipe of that number, or another has the name.
    """
    name = " ".join(name.split())
    if _tried(session, number).name == name:
        return None
    taken = (each for at, each in enumerate(session.tried) if at != number)
    if name and any(each.name == name for each in taken):
        raise UsageError(f"another recipe is called {name!r}: choose another name")
    return p.RecipeNamed(number, name)


def tuned_for(session: Session, target: str, context: int, batch: int) -> p.TunedFor | None:
    """The event of saying what the recipe is tuned for; None if that was said already.

    Raises:
        UsageError: a context below 0, or a batch below 1.
    """
    if context < 0 or batch < 1:
        raise UsageError("a context is 0 or more, a batch 1 or more")
    found = p.TunedFor(target, context, batch)
    return None if found == session.tuning else found


def _tried(session: Session, number: int) -> Tried:
    if not 0 <= number < len(session.tried):
        raise UsageError(f"no recipe {number} was tried: there are 0 to {len(session.tried) - 1}")
    return session.tried[number]


def undo(session: Session) -> p.RecipeChanged:
    """The event of undoing the last change.

    Raises:
        InfeasibleError: nothing to undo.
    """
    if not session.position:
        raise InfeasibleError("nothing to undo")
    step = session.history[session.position - 1]
    return _changed(session, "undo", *_there(session, step.layers, step.before))


def redo(session: Session) -> p.RecipeChanged:
    """The event of redoing the last undone change.

    Raises:
        InfeasibleError: nothing to redo.
    """
    if session.position >= len(session.history):
        raise InfeasibleError("nothing to redo")
    step = session.history[session.position]
    return _changed(session, "redo", *_there(session, step.layers, step.after))


def resolve(
    session: Session,
    format: str,
    layers: Mapping[str, str],
    named: str = "",
    *,
    tied: bool = False,
) -> tuple[dict[str, str], list[p.Fallback]]:
    """A recipe from a format for the body, or a built-in recipe, and formats of named layers.

    Args:
        session: whose layers it is for.
        format: of the body, or ``kept``; with a built-in recipe, what that recipe makes of it.
        layers: formats by layer, which override everything else.
        named: a built-in recipe, or empty.
        tied: whether head and embedding are one tensor.

    Returns:
        Layers that are not kept, with canonical formats; and the layers that do not get the format
        asked for: kept, in another format, without a scale that nothing can absorb, or without
        methods whose inputs cannot be gathered.

    Raises:
        UsageError: an unknown layer, an unknown built-in recipe, or one that takes no format.
        FormatError: a format that does not parse, is not built yet, or cannot hold the layer that
            names it.
    """
    for name in layers:
        _row(session, name)
    asked = _asked(session, format, named, tied=tied)
    recipe: dict[str, str] = {}
    fallbacks: list[p.Fallback] = []
    for row, name in enumerate(session.layers.names):
        shape, kept = session.layers.shapes[row], session.kept(row)
        if name in layers:
            parsed = _built(kept if layers[name] == "kept" else layers[name])
            if (why := _why_not_row(session, row, parsed)) is not None:
                raise FormatError(f"{name}: {why}")
        elif (text := asked[row]) is None:
            continue
        elif (why := _why_not(wanted := _built(text), shape)) is not None:
            instead = held_instead(named, text, shape) if named else ""
            fallbacks.append(p.Fallback(layer=name, format=str(wanted), why=why, holds=instead))
            if not instead:
                continue
            parsed = _built(instead)
        elif (why := _why_not_row(session, row, wanted)) is not None:
            parsed = without_folds(wanted)
            if _why_not_row(session, row, parsed) is not None:
                parsed = without_calibration(parsed)
            holds = str(parsed)
            fallbacks.append(p.Fallback(layer=name, format=str(wanted), why=why, holds=holds))
        else:
            parsed = wanted
        if str(parsed) != kept:
            recipe[name] = str(parsed)
    return recipe, fallbacks


def _asked(session: Session, format: str, named: str, *, tied: bool) -> Sequence[str | None]:
    """The format asked for each layer that is not named; None if it is kept."""
    table = session.layers
    if named:
        columns = (table.names, table.kinds, table.blocks, table.roles, table.shapes)
        return asked_of(
            named,
            [Row(*row) for row in zip(*columns, strict=True)],
            architecture=session.checkpoint.architecture if session.checkpoint else "",
            tied=tied,
            format="" if format == "kept" else str(_built(format)),
        )
    default = None if format == "kept" else str(_built(format))
    return [None if role in ("head", "embedding") else default for role in table.roles]


def canonical(formats: Sequence[str], *, alone: bool = False) -> tuple[str, ...]:
    """Formats in their canonical form, each once.

    Args:
        formats: as typed.
        alone: whether they are for weights without inputs.

    Raises:
        FormatError: one does not parse or is not built yet, or with ``alone`` one depends on
            inputs.
    """
    parsed = [_built(text) for text in formats]
    for format in parsed if alone else ():
        if (why := why_not_alone(format)) is not None:
            raise FormatError(why)
    return tuple(dict.fromkeys(map(str, parsed)))


# Cached: a change may cover tens of thousands of layers, in a few formats and shapes.


_built = lru_cache(maxsize=1024)(parse_built)


@lru_cache(maxsize=1024)
def _why_not(format: Format, shape: tuple[int, ...]) -> str | None:
    return why_not_held(format, shape)


def _why_not_row(session: Session, row: int, format: Format) -> str | None:
    """Why a layer cannot hold a format, because of its shape or its inputs."""
    layers = session.layers
    if (why := _why_not(format, layers.shapes[row])) is not None:
        return why
    if layers.roles[row] == "embedding":
        return _why_not_alone(format)
    if session.model is not None and _needs_calibration(format):
        why = session.model.why_not_gathered.get(layers.names[row])
        if why is not None:
            return f"{why}, and {format} needs those of one place"
    if not _folds(format):
        return None
    if session.model is None:
        return f"the model must be loaded to know whether anything can absorb the scale of {format}"
    why = session.model.why_not_folded.get(layers.names[row])
    return why and f"{why}, so nothing absorbs the scale of {format} (use ':online')"


@lru_cache(maxsize=1024)
def _folds(format: Format) -> bool:
    return folds(format)


@lru_cache(maxsize=1024)
def _needs_calibration(format: Format) -> bool:
    return needs_calibration(format)


@lru_cache(maxsize=1024)
def _why_not_alone(format: Format) -> str | None:
    why = why_not_alone(format)
    return why and f"{why}, and an embedding is a lookup: it multiplies no inputs"


@lru_cache(maxsize=1024)
def _bits(held: str, shape: tuple[int, ...]) -> int:
    return stored_bits(parse_format(held), shape)


def _there(
    session: Session, layers: Sequence[str], held: Sequence[str]
) -> tuple[list[int], list[str]]:
    """Rows and formats of the layers that are still in the table."""
    pairs = [
        (row, format)
        for name, format in zip(layers, held, strict=True)
        if (row := session.row(name)) is not None
    ]
    return [row for row, _ in pairs], [format for _, format in pairs]


def _row(session: Session, layer: str) -> int:
    row = session.row(layer)
    if row is None:
        near = nearest(layer, session.layers.names)
        hint = f": did you mean {near!r}?" if near else ""
        raise UsageError(f"the checkpoint has no layer {layer!r}{hint}")
    return row


def _changed(
    session: Session,
    how: Literal["set", "undo", "redo"],
    rows: Sequence[int],
    after: Sequence[str],
) -> p.RecipeChanged:
    layers = session.layers
    bits = [
        _bits(held, layers.shapes[row]) if held != session.kept(row) else layers.own_bits[row]
        for row, held in zip(rows, after, strict=True)
    ]
    return p.RecipeChanged(
        how=how,
        layers=[session.layers.names[row] for row in rows],
        before=[session.layers.holds[row] for row in rows],
        after=list(after),
        bits=bits,
    )
