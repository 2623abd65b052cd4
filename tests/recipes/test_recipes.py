"""Changing the recipe of a session, also of very many layers at once."""

from __future__ import annotations

import pytest

from engine import protocol as p
from engine.errors import FormatError, UsageError
from engine.formats.grammar import parse_format
from engine.formats.storage import stored_bits
from engine.recipes import changes as recipes
from engine.recipes.tensor_classes import Row
from engine.session import Session, apply
from engine.session.artefact import bits_as_stored

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
    with pytest.raises(FormatError, match="the model must be loaded to know"):
        recipes.change(found, found.layers.names, "int4-g128+awq")
    assert recipes.change(found, found.layers.names, "kept") is None


# --- built-in recipes ----------------------------------------------------------------------------


def llama() -> Session:
    """Two blocks of rows of 256, but for one."""
    found = Session()
    rows = [Row("model.embed_tokens", "embed_tokens", -1, "embedding", (64, 256))]
    for block in range(2):
        for kind in ("q_proj", "k_proj", "v_proj", "o_proj"):
            name = f"model.layers.{block}.self_attn.{kind}"
            rows.append(Row(name, kind, block, "linear", (256, 256)))
        rows.append(Row(f"model.layers.{block}.mlp.up_proj", "up_proj", block, "linear", (64, 256)))
        rows.append(
            Row(f"model.layers.{block}.mlp.down_proj", "down_proj", block, "linear", (256, 96))
        )
    rows.append(Row("lm_head", "lm_head", -1, "head", (64, 256)))
    names, kinds, blocks, roles, shapes = (list(column) for column in zip(*rows, strict=True))
    listed = p.LayersListed(
        names=names, kinds=kinds, blocks=blocks, roles=roles, shapes=shapes,
        dtypes=["bfloat16"] * len(rows), other_bytes=0,
    )  # fmt: skip
    apply(found, listed)
    return found


def test_a_built_in_recipe_names_head_and_embedding_and_tells_where_it_gave_way() -> None:
    found = llama()
    recipe, fallbacks = recipes.resolve(found, "kept", {}, "q4_k_m")
    assert list(recipe) == found.layers.names
    assert (recipe["lm_head"], recipe["model.embed_tokens"]) == ("q6_k", "q4_k")
    down = [f"model.layers.{block}.mlp.down_proj" for block in range(2)]
    assert {each.layer: (each.format, each.holds) for each in fallbacks} == {
        down[0]: ("q4_k", "q5_0"),
        down[1]: ("q6_k", "q8_0"),
    }
    assert (recipe[down[0]], recipe[down[1]]) == ("q5_0", "q8_0")


def test_named_layers_go_before_a_built_in_recipe() -> None:
    found = llama()
    named = {"lm_head": "kept", "model.layers.0.mlp.down_proj": "int8"}
    recipe, fallbacks = recipes.resolve(found, "kept", named, "Q4_K_M")
    assert "lm_head" not in recipe
    assert recipe["model.layers.0.mlp.down_proj"] == "int8"
    assert [each.layer for each in fallbacks] == ["model.layers.1.mlp.down_proj"]
    whole, _ = recipes.resolve(found, "int8", {}, "first-last")
    assert whole == {}  # two blocks, both at an end: kept is better than 8 bits


def test_a_recipe_by_no_known_name_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean Q4_K_M"):
        recipes.resolve(llama(), "kept", {}, "Q4_KM")


def test_what_a_recipe_is_tuned_for_is_said_once_and_folded() -> None:
    session = Session()
    event = recipes.tuned_for(session, "gptq", 4096, 2)
    assert event == p.TunedFor("gptq", 4096, 2)
    apply(session, event)
    assert session.tuned_for == event
    assert recipes.tuned_for(session, "gptq", 4096, 2) is None
    assert recipes.tuned_for(Session(), "", 0, 1) is None
    for context, batch in ((-1, 1), (0, 0)):
        with pytest.raises(UsageError, match="context"):
            recipes.tuned_for(session, "", context, batch)
