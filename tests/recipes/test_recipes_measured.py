"""A built-in recipe through the engine: resolved there, measured, told of where it gave way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import protocol as p
from engine.client import InProcess, in_process
from engine.session import recipe_hash
from tests import tiny
from tests.drive import ended, facts, settings, until


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied head, and rows of 64 and 128: blocks of 32 fit, those of 256 do not."""
    return tiny.build("qwen3", tmp_path_factory.mktemp("models") / "qwen3")


@pytest.fixture
def client(source: Path, prose: Path) -> Iterator[InProcess]:
    found = in_process(str(source))
    found.send(p.Open(str(source), settings(prose)))
    yield found
    found.close()


def test_a_recipe_by_name_scores_what_its_layers_by_name_do(client: InProcess) -> None:
    client.send(p.Evaluate(recipe="q4_0"))
    events = until(client, ended("evaluate"))
    names = client.session.layers.names
    outside = {"lm_head", "model.embed_tokens"}
    by_layer = {name: "q8_0" if name in outside else "q4_0" for name in names}
    (score,) = [x for x in facts(events, p.RecipeScore) if isinstance(x, p.RecipeScore) and x.done]
    assert score.recipe == recipe_hash(by_layer)
    assert score.kl > 0
    # Head and embedding are one tensor there, of 6 bits but for its rows of 64.
    told = {e.layer: (e.format, e.holds) for e in events if isinstance(e, p.Fallback)}
    assert told == dict.fromkeys(outside, ("q6_k", "q8_0"))
    client.send(p.Evaluate(layers=by_layer))
    again = until(client, ended("evaluate"))
    assert facts(again, p.RecipeScore) == [score]
    assert not client.session.changed  # the session's own recipe stays


def test_an_unknown_recipe_is_refused_before_anything_is_loaded(client: InProcess) -> None:
    client.send(p.Evaluate(recipe="Q4_KM", ask="mine"))
    refused = until(client, lambda event: isinstance(event, p.Refused))[-1]
    assert isinstance(refused, p.Refused)
    assert (refused.ask, refused.exit_code) == ("mine", 2)
    assert "did you mean Q4_K_M" in refused.message


@pytest.mark.usefixtures("checked_here")
def test_what_llama_cpp_alone_has_is_not_exported_and_first_last_is(
    client: InProcess, tmp_path: Path
) -> None:
    client.send(p.Export(out=str(tmp_path / "gguf"), recipe="Q4_K_M"))
    end = until(client, ended("export"))[-1]
    assert isinstance(end, p.JobEnded)
    assert (end.status, end.exit_code) == ("failed", 5)
    assert "a type of GGUF files" in end.message
    client.send(p.Export(out=str(tmp_path / "ends"), recipe="first-last", format="int4-g32"))
    events = until(client, ended("export"))
    (written,) = [event for event in events if isinstance(event, p.Exported)]
    for name, held in written.recipe.items():
        assert held == ("int4-g32" if ".layers.1." in name else "int8")
    assert {name.split(".")[2] for name in written.recipe} == {"0", "1", "2"}
