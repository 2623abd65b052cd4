"""What a toggle acts on."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from engine import protocol as p
from engine.session import Session, apply
from qtui.views.scope import (
    SCOPES,
    Scope,
    ScopeContext,
    describe,
    in_scope,
    index_layers,
    next_scope,
    possible,
    scope_test,
    why_not,
)
from qtui.views.text import PLAIN
from tests.qtui import replay as r

NAMES = r.names()
FUSED = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "gate_proj": 1, "up_proj": 1}


def grouped(names: list[str] | None = None) -> p.LayersListed:
    """The rows of the table with their fused groups."""
    listed = r.listed(names)
    groups = [
        -1 if kind not in FUSED else 2 * block + FUSED[kind]
        for kind, block in zip(listed.kinds, listed.blocks, strict=True)
    ]
    return msgspec.structs.replace(listed, groups=groups)


def here(
    layer: str | None, marked: tuple[str, ...] = (), filter: str = "", *fit: str
) -> ScopeContext:
    session = Session()
    apply(session, grouped())
    row = None if layer is None else session.index[layer]
    rows = sorted(session.index[name] for name in fit)
    return ScopeContext(session, index_layers(session.layers), row, set(marked), filter, rows)


Q3 = "model.layers.3.self_attn.q_proj"
MARKED = ("lm_head", Q3, NAMES[5])
EVERYTHING = here(Q3, MARKED, "kl>1e-3", Q3, NAMES[2])


def test_each_scope_is_what_its_name_says() -> None:
    wanted: dict[Scope, list[str]] = {
        "layer": [Q3],
        "marks": [NAMES[5], Q3, "lm_head"],
        "block": [name for name in NAMES if ".3." in name],
        "kind": [name for name in NAMES if name.endswith("q_proj")],
        "group": [f"model.layers.3.self_attn.{kind}_proj" for kind in "qkv"],
        "filter": [NAMES[2], Q3],
    }
    for scope in SCOPES:
        assert list(in_scope(scope, EVERYTHING)) == wanted[scope]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    "at",
    [
        EVERYTHING,
        here(None),
        here("lm_head"),
        here("lm_head", ("lm_head",), "head", "lm_head"),
        here(NAMES[4], MARKED),
        here(Q3, (), "nothing"),
    ],
)
def test_single_rows_are_tested_for_what_is_listed(scope: Scope, at: ScopeContext) -> None:
    test = scope_test(scope, at)
    assert tuple(name for row, name in enumerate(NAMES) if test(row)) == in_scope(scope, at)


def test_words_say_what_and_how_many() -> None:
    words = [describe(scope, EVERYTHING) for scope in SCOPES]
    assert words == [
        "3 self_attn.q_proj",
        "3 marked layers, 2 hidden, including head",
        "block 3: 7 layers",
        "kind q_proj: 5 layers",
        "3 q+k+v: 3 layers",
        "filter “kl>1e-3”: 2 layers",
    ]
    assert describe("layer", here(None)) == "no layer"
    assert describe("marks", here(Q3, (Q3,))) == "1 marked layer"
    assert describe("group", here("model.layers.0.mlp.up_proj")) == "0 gate+up: 2 layers"
    ends = here(Q3, ("lm_head", "model.embed_tokens"))
    assert describe("marks", ends) == "2 marked layers, including embedding and head"


def test_words_are_ascii_where_the_terminal_is_and_cannot_steer_it() -> None:
    said = describe("filter", here(Q3, (), "é\x1b[2J", Q3), PLAIN)
    assert said == 'filter "\\xe9\\x1b[2J": 1 layer'
    assert describe("filter", here(Q3, (), "\x1b[2J")) == "filter “\\x1b[2J”: 0 layers"


def test_the_next_scope_passes_over_those_that_make_no_sense() -> None:
    def cycle(at: ScopeContext) -> list[Scope]:
        scopes: list[Scope] = ["layer"]
        while (following := next_scope(scopes[-1], at)) != "layer":
            scopes.append(following)
        return scopes

    assert cycle(EVERYTHING) == list(SCOPES)
    assert cycle(here(Q3)) == ["layer", "block", "kind", "group"]
    assert cycle(here("model.layers.3.mlp.down_proj")) == ["layer", "block", "kind"]
    assert cycle(here("lm_head")) == ["layer"]
    assert cycle(here(None)) == ["layer"]
    assert cycle(here("lm_head", (Q3,), "q", Q3)) == ["layer", "marks", "filter"]
    assert next_scope("layer", EVERYTHING, -1) == "filter"


def test_a_scope_that_makes_no_sense_says_why_and_falls_back_to_the_cursor() -> None:
    assert get_args(Scope) == SCOPES
    assert why_not("block", here("lm_head")) == "this layer is in no block"
    assert why_not("kind", here("lm_head")) == "this layer is alone in its kind"
    assert why_not("group", here("lm_head")) == "this layer is in no fused group"
    assert why_not("marks", here(Q3)) == "no layer is marked"
    assert why_not("filter", here(Q3)) == "there is no filter"
    assert why_not("filter", here(Q3, (), "x")) == "no layer matches the filter"
    assert why_not("layer", here(None)) == "there is no layer under the cursor"
    assert possible("block", here("lm_head")) == "layer"
    assert possible("block", here(Q3)) == "block"


def test_head_and_embedding_are_in_scope_only_where_they_match_literally() -> None:
    assert "lm_head" not in in_scope("block", here(Q3))
    assert "lm_head" in in_scope("filter", here(Q3, (), "head", "lm_head"))
    assert in_scope("kind", here("lm_head")) == ("lm_head",)
