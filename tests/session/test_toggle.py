"""A toggle while a sweep runs: measured at once, and no figure of the sweep is another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine import protocol as p
from engine.client import Client, InProcess, in_process, spawned
from engine.session import predict
from tests import tiny
from tests.drive import ended, facts, is_partial, settings, until

Start = Callable[[str], Client]


@contextmanager
def engine(start: Start, source: Path) -> Iterator[Client]:
    client = start(str(source))
    try:
        yield client
    finally:
        try:
            if start is spawned:
                client.send(p.Stop())
        finally:
            client.close()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("toggle") / "tiny-llama")


def sensitivities(events: list[p.AnyEvent]) -> dict[str, p.Sensitivity]:
    return {f.layer: f for f in facts(events, p.Sensitivity) if isinstance(f, p.Sensitivity)}


LONG = {"fresh": True, "tokens": 2048}
"""A sweep that is still going on when a toggle comes."""


@pytest.fixture(scope="module")
def undisturbed(
    source: Path, prose: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, p.Sensitivity]:
    """Figures of a sweep that nobody disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("undisturbed")))
        with engine(in_process, source) as client:
            client.send(p.Open(str(source), settings(prose, **LONG)))
            client.send(p.Sweep())
            return sensitivities(until(client, ended("sweep")))


@pytest.mark.parametrize("start", [in_process, spawned])
def test_toggle_is_measured_within_two_micro_batches_and_changes_no_sweep_figure(
    start: Start, source: Path, prose: Path, undisturbed: dict[str, p.Sensitivity]
) -> None:
    chosen = settings(prose, **LONG)
    layer, format = "model.layers.1.mlp.down_proj", "int3-g32"
    with engine(start, source) as client:
        client.send(p.Open(str(source), chosen))
        client.send(p.Sweep())
        events = until(
            client, lambda e: isinstance(e, p.Learned) and bool(facts([e], p.Sensitivity))
        )
        client.send(p.SetFormat((layer,), format))
        events += (to_change := until(client, lambda e: isinstance(e, p.RecipeChanged)))
        assert isinstance(to_change[-1], p.RecipeChanged)
        assert to_change[-1].after == [format]
        events += (to_partial := until(client, is_partial))
        # Progress is told in layers, and may be left out on a socket: what counts is how far it
        # went on. 2048 tokens in micro-batches of 128 are 16 steps a layer.
        far = [e.done for e in to_partial if isinstance(e, p.Progress) and e.job[:5] == "sweep"]
        assert not far or round(16 * (far[-1] - far[0])) <= 2
        if start is in_process:
            assert len(far) <= 2
        assert not any(isinstance(e, p.JobEnded) and e.kind == "sweep" for e in to_partial)
        events += until(client, ended("sweep"))
        score = client.session.score()
        assert score is not None
        assert score.done
        assert client.session.recipe() == {layer: format}
    assert sensitivities(events) == undisturbed


@pytest.mark.parametrize("start", [in_process, spawned])
def test_undo_and_redo_walk_one_history_and_never_unmeasure(
    start: Start, source: Path, prose: Path
) -> None:
    layer = "model.layers.0.self_attn.q_proj"
    with engine(start, source) as client:
        # Before the layers are known there is nothing to set. Once it opens they may be listed at
        # any moment: in this process nothing is announced meanwhile, another one is asked before.
        opening, setting = p.Open(str(source), settings(prose)), p.SetFormat((layer,), "int4-g32")
        if isinstance(client, InProcess):
            with client._engine._lock:
                client.send(opening)
                client.send(setting)
            until(client, lambda e: isinstance(e, p.Refused))
        else:
            client.send(setting)
            until(client, lambda e: isinstance(e, p.Refused))
            client.send(opening)
        until(client, lambda e: isinstance(e, p.ModelReady))
        for format in ("int4-g32", "int8", "int2-g32"):
            client.send(p.SetFormat((layer,), format))
            until(client, ended("evaluate"))
        for expected in ("int8", "int4-g32", None):
            client.send(p.Undo())
            until(client, ended("evaluate"))
            assert client.session.recipe().get(layer) == expected
        client.send(p.Undo())
        refused = until(client, lambda e: isinstance(e, p.Refused))[-1]
        assert isinstance(refused, p.Refused)
        assert "nothing to undo" in refused.message
        client.send(p.Redo())
        again = until(client, ended("evaluate"))
        assert client.session.recipe() == {layer: "int4-g32"}
        last = again[-1]
        assert isinstance(last, p.JobEnded)
        assert last.measured == 0
        assert last.resumed == 2  # the baseline, and the recipe's score from before


def test_session_goes_on_where_it_was_left(source: Path, prose: Path) -> None:
    layer = "model.layers.2.mlp.up_proj"
    with engine(in_process, source) as client:
        client.send(p.Open(str(source), settings(prose)))
        until(client, lambda e: isinstance(e, p.ModelReady))
        client.send(p.SetFormat((layer,), "int4-g32"))
        until(client, ended("evaluate"))
        score = client.session.score()
    with engine(in_process, source) as client:
        client.send(p.Open(str(source), settings(prose)))
        events = until(client, ended("evaluate"))
        assert client.session.recipe() == {layer: "int4-g32"}
        assert client.session.score() == score
        last = events[-1]
        assert isinstance(last, p.JobEnded)
        assert last.measured == 0
        client.send(p.Undo())
        until(client, ended("evaluate"))
        assert client.session.recipe() == {}


def test_toggling_back_scores_exactly_the_baseline(source: Path, prose: Path) -> None:
    layer = "model.layers.2.mlp.up_proj"
    with engine(in_process, source) as client:
        client.send(p.Open(str(source), settings(prose)))
        until(client, lambda e: isinstance(e, p.ModelReady))
        client.send(p.SetFormat((layer,), "int4-g32"))
        until(client, ended("evaluate"))
        client.send(p.SetFormat((layer,), "kept"))
        until(client, ended("evaluate"))
        score, baseline = client.session.score(), client.session.baseline
        assert score is not None
        assert baseline is not None
        assert (score.dnll, score.kl, score.nll) == (0.0, 0.0, baseline.nll)


@pytest.mark.parametrize(
    ("layers", "format", "says"),
    [
        (("model.layers.9.mlp.up_proj",), "int4-g32", "no layer"),
        (("model.layers.0.mlp.up_proj",), "int44", "did you mean"),
        (("model.layers.0.mlp.up_proj",), "int8+hadamard+outlier6", "not yet"),
        (("model.layers.0.mlp.up_proj",), "q4_k", "do not divide"),
    ],
)
def test_a_toggle_that_cannot_be_is_refused_in_a_sentence(
    layers: tuple[str, ...], format: str, says: str, source: Path, prose: Path
) -> None:
    with engine(in_process, source) as client:
        client.send(p.Open(str(source), settings(prose), model=False))
        until(client, ended("open"))
        client.send(p.SetFormat(layers, format))
        refused = until(client, lambda e: isinstance(e, p.Refused))[-1]
        assert isinstance(refused, p.Refused)
        assert says in refused.message
        assert refused.exit_code == 2
        assert client.session.recipe() == {}


def test_predicted_is_the_sum_of_known_single_effects(source: Path, prose: Path) -> None:
    with engine(in_process, source) as client:
        client.send(p.Open(str(source), settings(prose)))
        client.send(p.Sweep())
        rows = sensitivities(until(client, ended("sweep")))
        layers = ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.o_proj")
        client.send(p.SetFormat(layers, "int4-g32"))
        until(client, ended("evaluate"))
        predicted = predict(client.session)
        assert predicted is not None
        assert predicted.missing == 0
        assert predicted.kl == pytest.approx(sum(rows[name].kl for name in layers))
        client.send(p.SetFormat(("lm_head",), "int7-g32"))
        until(client, ended("evaluate"))
        predicted = predict(client.session)
        assert predicted is not None
        assert (predicted.missing, predicted.filled) == (0, 1), "int4-g32 of the head is known"
        score = client.session.score()
        assert score is not None
        before = client.session.scores[predicted.start]
        head = rows["lm_head"].kl * ((2**4 - 1) / (2**7 - 1)) ** 2
        together = before.kl / sum(rows[name].kl for name in layers)
        assert predicted.kl == pytest.approx(before.kl + together * head)
        assert before != score, "it starts from the recipe before, not from itself"
