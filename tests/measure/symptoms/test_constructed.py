"""Symptoms planted in a model of which it is known what it says without each of its parts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import protocol as p
from engine.client import in_process
from engine.client.in_process import InProcess
from engine.diagnosis.causes import causes
from engine.diagnosis.of_symptoms import Shown, alarms, shown
from engine.session import Traced
from tests import constructed as c

NEW = 20
PROMPTS = c.prompts(12)
TOPICS = {"n": "counting", "c": "copying", "t": "the topic"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    folder = c.build(tmp_path_factory.mktemp("constructed") / "model")
    text = folder / "text.txt"
    text.write_text(" ".join(c.says(["n0"], 70)))
    engine = in_process(str(folder))
    settings = p.Settings(text=str(text), tokens=64, seq_len=32)
    for event in engine.run(p.Open(str(folder), settings)):
        assert not isinstance(event, p.JobEnded) or event.status == "done", event.message
    yield engine
    engine.close()


def kind(prompt: list[str]) -> str:
    return prompt[-1][0]


def found(
    engine: InProcess, folder: Path, damaged: list[str], *, why: bool = True
) -> tuple[list[Shown], Traced | None]:
    """What comes of the prompts with some layers in 2 bits, and the others in 8."""
    file = folder / "prompts.jsonl"
    rows = [
        {"id": str(at), "prompt": " ".join(each), "topic": TOPICS[kind(each)]}
        for at, each in enumerate(PROMPTS)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    names = [n for n in engine.session.layers.names if ".layers." in n]
    recipe = dict.fromkeys(names, "int8") | dict.fromkeys(damaged, "int2-channel")
    command = p.FindSymptoms(file=str(file), layers=recipe, sampling=p.Sampling(NEW), why=why)
    for event in engine.run(command):
        assert not isinstance(event, p.Refused), event
    job = next(job for job in reversed(engine.session.jobs.values()) if job.kind == "symptoms")
    assert job.status == "done", job.message
    of = job.read(p.Symptoms)
    facts = [engine.session.continued[of.recipe][each] for each in of.prompts]
    return shown(facts), engine.session.traced.get(of.recipe)


PLANTS = {
    "attention": (c.ATTENTION, "c", "loop"),
    "mlp": (c.MLP, "t", "garble"),
    "head": (["lm_head"], "nct", "one-token"),
}


@pytest.mark.parametrize("part", PLANTS)
def test_a_planted_symptom_is_found_where_it_is_and_cured_by_what_was_damaged(
    engine: InProcess, tmp_path: Path, part: str
) -> None:
    damaged, languages, symptom = PLANTS[part]
    prompts, traced = found(engine, tmp_path, damaged)
    for prompt, each in zip(PROMPTS, prompts, strict=True):
        assert each.fact.reference.text.split() == c.says(prompt, NEW)
        without = [c.BEGIN] * NEW if part == "head" else c.says(prompt, NEW, without={part})
        assert each.fact.changed.text.split() == without
        assert bool(each.added) == (kind(prompt) in languages)
        assert not each.added or each.added[0].kind == symptom
    assert traced is not None
    assert set(traced.ranked()[0].layers) == set(damaged)
    (cured,) = [cure for cure in traced.cures if not cure.left]
    assert set(cured.layers) == set(damaged)
    named = {each.id: each for each in causes(engine.session, prompts, traced, ["int8"])}
    (cause,) = [named[id] for id in ("layers", "head") if id in named]
    assert set(cause.layers) == set(damaged)
    if part == "mlp":
        assert "prompts on the topic fail more often: 4 of 4" in named["topic"].sentence
        assert named["channels"].layers == (c.MLP[-1],)
        assert "fire only on prompts that fail" in named["channels"].sentence
        assert named["channels"].evidence["share"] > 0.9
    else:
        assert "channels" not in named


def test_layers_of_the_induction_head_win_nothing_one_by_one(
    engine: InProcess, tmp_path: Path
) -> None:
    _, traced = found(engine, tmp_path, c.ATTENTION)
    assert traced is not None
    block = traced.restored[f"block {c.BLOCKS - 1} self_attn"]
    assert block.kl == pytest.approx(block.whole, rel=1e-3)
    for name in c.ATTENTION:
        assert abs(traced.restored[name].kl) < 0.01 * block.kl


def test_the_model_in_eight_bits_shows_nothing(engine: InProcess, tmp_path: Path) -> None:
    prompts, _ = found(engine, tmp_path, [])
    assert not alarms(prompts)
    assert all(each.fact.first < 0 for each in prompts)
