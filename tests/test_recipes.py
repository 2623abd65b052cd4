"""Changing the recipe of a session, also of very many layers at once."""

from __future__ import annotations

import pytest

from engine import protocol as p
from engine import recipes
from engine.artefact import bits_as_stored
from engine.errors import FormatError, UsageError
from engine.quant import parse_format, stored_bits
from engine.session import Session, apply

MANY = 50_000


def session(count: int) -> Session:
    """Layers of two shapes, in blocks of seven."""
    found = Session()
    listed = p.LayersListed(
        names=[f"model.layers.{i // 7}.mlp.{i}" for i in range(count)],
        kinds=["up_proj"] * count,
        blocks=[i // 7 for i in range(count)],
        roles=["linear"] * count,
        shapes=[(64, 32) if i % 2 else (64, 96) for i in range(count)],
        dtypes=["bfloat16"] * count,
        other_bytes=0,
    )
    apply(found, listed)
    return found


def test_fifty_thousand_layers_change_in_one_step_that_reads_its_format_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []

    def spy(text: str) -> object:
        read.append(text)
        return parse_format(text)

    monkeypatch.setattr(recipes, "parse_format", spy)
    found = session(MANY)
    changed = recipes.change(found, found.layers.names, "int5-g64-sym")
    assert changed is not None
    assert len(changed.layers) == len(changed.bits) == MANY
    assert changed.bits[:2] == [
        stored_bits(parse_format("int5-g64-sym"), shape) for shape in ((64, 96), (64, 32))
    ]
    apply(found, changed, 1)
    assert len(found.changed) == MANY
    back = recipes.undo(found)
    assert back.bits[:2] == [bits_as_stored(shape, "bfloat16") for shape in ((64, 96), (64, 32))]
    apply(found, back, 2)
    assert found.changed == {}
    assert len(read) < 20


def test_one_that_cannot_change_leaves_all_as_they_are() -> None:
    found = session(10)
    with pytest.raises(UsageError, match="no such"):
        recipes.change(found, [*found.layers.names, "no such"], "int4")
    with pytest.raises(FormatError, match="not yet built"):
        recipes.change(found, found.layers.names, "int8+hadamard+outlier6")
    with pytest.raises(FormatError, match="once the model is loaded"):
        recipes.change(found, found.layers.names, "int4-g128+awq")
    assert recipes.change(found, found.layers.names, "kept") is None
