"""Recipes written by hand: who wins, what is kept, and what an error names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import UsageError
from engine.formats.grammar import parse_format
from engine.recipes.changes import resolve
from engine.recipes.file import RecipeFile, built_in, names_file, read_recipe
from engine.recipes.shorten import shortened
from engine.session import Session, apply
from tests.qtui import replay as r


@pytest.fixture
def session() -> Session:
    session = Session()
    for event in r.opening():
        apply(session, event)
    return session


def recipe(tmp_path: Path, text: str, session: Session) -> dict[str, str]:
    path = tmp_path / "recipe.toml"
    path.write_text('schema = "qtui.recipe/1"\n' + text)
    return read_recipe(path).resolve(session)


def test_the_default_is_left_to_the_engine(tmp_path: Path, session: Session) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('schema = "qtui.recipe/1"\ndefault = "int4-g128"\n')
    found = read_recipe(path)
    assert found.default == "int4-g128"
    assert found.resolve(session) == {}


def test_without_a_default_the_rest_is_kept(tmp_path: Path, session: Session) -> None:
    found = recipe(tmp_path, '[layers]\n"lm_head" = "int8"\n', session)
    assert found == {"lm_head": "int8"}


def test_the_first_match_from_the_top_wins(tmp_path: Path, session: Session) -> None:
    found = recipe(
        tmp_path,
        'default = "int4-g128"\n[layers]\n'
        '"model.layers.1.mlp.down_proj" = "int6-g128"\n'
        '"re:.*\\\\.down_proj$" = "int8"\n'
        '"model.layers.2.mlp.down_proj" = "int2-g128"\n'
        '"re:.*\\\\.layers\\\\.0\\\\." = "kept"\n',
        session,
    )
    assert found["model.layers.1.mlp.down_proj"] == "int6-g128"
    assert found["model.layers.2.mlp.down_proj"] == "int8"
    assert found["model.layers.0.mlp.down_proj"] == "int8"
    assert found["model.layers.0.mlp.up_proj"] == "kept"
    assert "model.layers.3.mlp.up_proj" not in found


def test_a_pattern_matches_from_the_beginning_of_a_name(tmp_path: Path, session: Session) -> None:
    with pytest.raises(UsageError, match="matches no layer"):
        recipe(tmp_path, '[layers]\n"re:down_proj" = "int8"\n', session)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "`schema` is missing"),
        ('schema = "qtui.recipe/9"', "'qtui.recipe/9', expected 'qtui.recipe/1'"),
        ("schema = ", "not valid TOML"),
        (
            'schema = "qtui.recipe/1"\ndefalt = "int8"',
            "`defalt` is not a key of qtui.recipe/1: did you "
            "mean `default`? There are `schema`, `checkpoint`, `default`, `recipe`, `layers`",
        ),
        ('schema = "qtui.recipe/1"\nrecipe = "Q4_KM"', "`recipe`: there is no built-in recipe"),
        ('schema = "qtui.recipe/1"\ndefault = 4', "`default` is 4"),
        ('schema = "qtui.recipe/1"\nlayers = "int8"', "`layers` is not a table"),
        ('schema = "qtui.recipe/1"\n[layers]\nlm_head = 8', "[layers] 'lm_head' is 8"),
        ('schema = "qtui.recipe/1"\n[layers]\na.b = "int8"', "put names with dots in quotes"),
        ('schema = "qtui.recipe/1"\n[layers]\n"re:(" = "int8"', "'(' is no regular expression"),
    ],
)
def test_a_fault_is_told_with_file_and_key(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as fault:
        read_recipe(path)
    assert str(path) in str(fault.value)
    assert named in str(fault.value)


def test_lines_may_be_laid_over_a_built_in_recipe(tmp_path: Path, session: Session) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('schema = "qtui.recipe/1"\nrecipe = "q4_k_m"\n[layers]\n"lm_head" = "kept"\n')
    found = read_recipe(path)
    assert (found.recipe, found.default) == ("Q4_K_M", "kept")
    assert found.resolve(session) == {"lm_head": "kept"}


@pytest.mark.parametrize(
    ("given", "file"),
    [
        ("Q4_K_M", False),
        ("first-last", False),
        ("mine", False),
        ("mine.toml", True),
        ("./Q4_K_M", True),
        ("folder/mine", True),
        ("~/mine", True),
    ],
)
def test_a_separator_or_a_suffix_makes_a_file_of_a_name(given: str, file: bool) -> None:
    assert names_file(given) == file


def test_a_file_without_either_is_told_how_to_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("")
    (tmp_path / "Q4_K_M").write_text("")
    assert built_in("Q4_K_M") == "Q4_K_M"
    with pytest.raises(UsageError, match=r"the file of that name is \./mine"):
        built_in("mine")


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("model.layers.0.mlp.downproj", "did you mean 'model.layers.0.mlp.down_proj'?"),
        ("mlp.down_proj", "did you mean 'model.layers.0.mlp.down_proj'?"),
        ("model.layer.3.self_attn.q_proj", "did you mean 'model.layers.3.self_attn.q_proj'?"),
        ("re:down_proj", "a pattern begins where the name does: did you mean 're:.*down_proj'?"),
        ("something else", "its layers are called like 'model.embed_tokens'"),
    ],
)
def test_a_layer_that_does_not_exist_is_told_with_the_nearest(
    line: str, hint: str, tmp_path: Path, session: Session
) -> None:
    with pytest.raises(UsageError, match=re.escape(hint)):
        recipe(tmp_path, f'[layers]\n"{line}" = "int8"\n', session)


def test_a_recipe_is_as_short_as_a_person_would_write_it(session: Session) -> None:
    names, roles = session.layers.names, session.layers.roles
    body = [n for n, role in zip(names, roles, strict=True) if role == "linear"]
    wanted = dict.fromkeys(body, "int4-g128")
    wanted |= {name: "int8" for name in body if name.endswith(".down_proj")}
    wanted |= {"lm_head": "int6-g128", "model.layers.2.mlp.down_proj": "int5-g128"}
    default, lines = shortened(session, wanted)
    assert default == "int4-g128"
    assert lines == [
        ("lm_head", "int6-g128"),
        ("model.layers.2.mlp.down_proj", "int5-g128"),
        ("re:.*\\.down_proj$", "int8"),
    ]
    assert shortened(session, {"lm_head": "int8"}) == ("kept", [("lm_head", "int8")])
    assert shortened(session, {}) == ("kept", [])


@given(st.lists(st.sampled_from(["int4-g128", "int8", "kept"]), min_size=37, max_size=37))
def test_a_shortened_recipe_reads_back_to_the_same_formats(held: list[str]) -> None:
    session = r.folded(*r.opening())
    wanted = {n: f for n, f in zip(session.layers.names, held, strict=True) if f != "kept"}
    default, lines = shortened(session, wanted)
    assert len(lines) <= len(wanted)
    file = RecipeFile(path=Path("r.toml"), default=default, lines=tuple(lines))
    found, fallbacks = resolve(session, default, file.resolve(session))
    assert found == {n: str(parse_format(f)) for n, f in wanted.items()}
    assert not fallbacks
