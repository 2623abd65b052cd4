"""After a restart the scores of all recipes are there, and none is measured again."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from engine import protocol as p
from engine.client import InProcess, in_process
from engine.session.tried import listed
from engine.store.facts import FactStore
from engine.store.paths import facts_file
from tests import tiny
from tests.drive import ended, facts, settings, until

RECIPES = ("int4-g32", "int8", "int3-g32+gptq")
"""Formats of one layer, each a recipe; the last needs calibration text."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(
        tiny.build("llama", tmp_path_factory.mktemp("recalled") / "model", num_hidden_layers=1)
    )


def reopened(source: str, chosen: p.Settings) -> tuple[InProcess, list[p.AnyEvent]]:
    """A new engine of the session, and its events until the current recipe's score is there."""
    client = in_process(source)
    client.send(p.Open(source, chosen))
    return client, until(client, ended("evaluate"))


def scores(client: InProcess) -> dict[str, p.RecipeScore | None]:
    """By the name of the recipe."""
    return {line.name: line.score for line in listed(client.session) if line.name}


def test_scores_of_recipes_left_behind_come_back(source: str, prose: Path) -> None:
    chosen = settings(prose, tokens=64, calib=str(prose), calib_tokens=64)
    with closing(in_process(source)) as client:
        client.send(p.Open(source, chosen))
        until(client, ended("open"))
        layer = client.session.layers.names[1]
        for format in RECIPES:
            client.send(p.SetFormat((layer,), format))
            until(client, ended("evaluate"))
            client.send(p.NameRecipe(client.session.at, format))
            until(client, lambda event: isinstance(event, p.RecipeNamed))
        before = scores(client)
    assert before.keys() == set(RECIPES)
    assert None not in before.values()

    client, events = reopened(source, chosen)
    with closing(client):
        assert scores(client) == before
        assert not [e for e in events if isinstance(e, p.Learned) and e.fresh]
        assert len(facts(events, p.RecipeScore)) == len(RECIPES) + 1  # and of the current one

    other = settings(prose, tokens=128, calib=str(prose), calib_tokens=64)
    client, _ = reopened(source, other)
    with closing(client):
        found = scores(client)
        assert [name for name in found if found[name] is not None] == [RECIPES[-1]]

    # Its calibration text is another: the score with +gptq is another.
    calibrated = settings(prose, tokens=64, calib=str(prose), calib_tokens=96)
    client, _ = reopened(source, calibrated)
    with closing(client):
        found = scores(client)
        assert {name: found[name] for name in RECIPES[:2]} == {
            name: before[name] for name in RECIPES[:2]
        }
        assert found[RECIPES[-1]] != before[RECIPES[-1]]


def test_a_score_of_an_earlier_version_comes_back_with_the_bits_of_all_layers(
    source: str, prose: Path
) -> None:
    chosen = settings(prose, tokens=64)
    with closing(in_process(source)) as client:
        client.send(p.Open(source, chosen))
        until(client, ended("open"))
        layer = client.session.layers.names[1]
        client.send(p.SetFormat((layer,), "int6-g32"))
        events = until(client, ended("evaluate"))
        client.send(p.SetFormat((layer,), "int8"))
        until(client, ended("evaluate"))
    (learned,) = [e for e in events if isinstance(e, p.Learned) and facts([e], p.RecipeScore)]
    (now,) = facts([learned], p.RecipeScore)
    with closing(FactStore(facts_file())) as store:
        before = msgspec.structs.replace(now, bits_all=0.0)
        store.put(learned.keys, [before], replace=True)

    client, _ = reopened(source, chosen)
    with closing(client):
        assert client.session.scores[now.recipe].bits_all == pytest.approx(now.bits_all)
