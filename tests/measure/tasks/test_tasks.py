"""Tasks against lm-eval's own run of the same task, and against a plain loop of transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

import engine
from engine import protocol as p
from engine.client import in_process
from engine.demo import DEMO_PATH
from engine.formats.grammar import parse_format
from engine.measure.counts import JobCounts
from engine.measure.symptoms.weights import recipe_weights
from engine.measure.tasks.likelihoods import Likelihood, Scored, score_pairs
from engine.measure.tasks.pairs import Encoder, Pair
from engine.measure.tasks.tasks import _not_finite
from engine.report.documents import symptoms_document
from engine.session import Session, apply
from engine.store.facts import FactStore
from engine.workspace import Loaded
from tests.drive import ended, load, settings, until
from tests.measure.tasks.items import rows, write, written

KEPT = json.loads((Path(__file__).parent / "lm_eval.json").read_text(encoding="utf-8"))
"""By `tests.measure.tasks.renew`, from lm-eval's own HFLM."""


@pytest.fixture(scope="module")
def prose_of_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tasks") / "text.txt"
    file.write_text("import os\n\n\ndef main():\n    return os.getcwd()\n" * 60, encoding="utf-8")
    return file


@pytest.fixture
def demo(prose_of_demo: Path, tmp_path: Path) -> Iterator[Loaded]:
    facts = FactStore(tmp_path / "facts.sqlite")
    yield load("demo", facts, settings(prose_of_demo, dtype="fp32", device="cpu"))
    facts.close()


def encoder() -> Encoder:
    from transformers import AutoTokenizer

    return Encoder(AutoTokenizer.from_pretrained(DEMO_PATH), 256)


def pairs_of(lines: Sequence[dict[str, object]]) -> list[Pair]:
    found = encoder()
    return [
        found.pair(str(line["prompt"]), f" {choice}")
        for line in lines
        for choice in line["choices"]  # type: ignore[attr-defined]
    ]


def test_likelihoods_equal_lm_evals_for_both(demo: Loaded) -> None:
    formats = {
        name: parse_format(KEPT["format"])
        for name, layer in demo.network.layers.items()
        if layer.role not in ("head", "embedding")
    }
    counts = JobCounts()
    steps = score_pairs(
        demo, pairs_of(rows()), formats, lambda: recipe_weights(demo, formats, counts), counts
    )
    while True:
        try:
            next(steps)
        except StopIteration as end:
            scores = end.value
            break
        demo.network.assert_at_rest()
    for mine, theirs in (("reference", "reference"), ("recipe", "recipe")):
        kept = [value for item in KEPT[theirs] for value in item["likelihoods"]]
        found = [getattr(each, mine).log for each in scores]
        assert found == pytest.approx(kept, abs=2e-4)


def answered(text: Path, *tasks: Path, **given: object) -> tuple[Session, p.JobEnded]:
    session = Session()
    client = in_process("demo")
    try:
        client.send(p.Open("demo", settings(text, dtype="fp32", device="cpu"), model=True))
        client.send(
            p.FindSymptoms(tasks=tuple(map(str, tasks)), format=KEPT["format"], **given)  # type: ignore[arg-type]
        )
        events = until(client, ended("symptoms"))
    finally:
        client.close()
    for seq, event in enumerate(events, 1):
        apply(session, event, seq)
    last = events[-1]
    assert isinstance(last, p.JobEnded)
    assert last.status == "done", last.message
    return session, last


@pytest.mark.usefixtures("own_folders")
def test_accuracy_and_flips_equal_lm_evals(prose_of_demo: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "python.jsonl", [*rows(), *written()])
    session, _ = answered(prose_of_demo, file)
    document = symptoms_document(session, KEPT["format"])
    task, exact = document.tasks
    assert (task.name, task.items, exact.name, exact.items) == ("python", 24, "written", 8)
    metrics = {each.metric: each for each in (task, *task.other_metrics)}
    for name, found in metrics.items():
        one = [item[name] for item in KEPT["reference"]]
        other = [item[name] for item in KEPT["recipe"]]
        assert found.accuracy_reference == pytest.approx(sum(one) / 24)
        assert found.accuracy == pytest.approx(sum(other) / 24)
        assert found.flips == sum(a != b for a, b in zip(one, other, strict=True))
        assert found.lost == sum(a > b for a, b in zip(one, other, strict=True))
    flipped = [
        f"q{at}"
        for at, (a, b) in enumerate(zip(KEPT["reference"], KEPT["recipe"], strict=True))
        if a["acc"] != b["acc"]
    ]
    shown = [each for each in task.changed_items if each.reference_right != each.recipe_right]
    assert [each.id for each in shown] == flipped
    assert task.flips >= 2
    # The second time every figure is found, and nothing is measured.
    again, _ = answered(prose_of_demo, file)
    job = next(each for each in again.jobs.values() if each.kind == "symptoms")
    assert (job.measured, job.resumed > 0) == (0, True)
    assert symptoms_document(again, "", job=job).tasks == document.tasks


@pytest.mark.usefixtures("own_folders")
def test_prompts_that_are_cut_are_told(prose_of_demo: Path, tmp_path: Path) -> None:
    long = {"prompt": "import os\n" * 300, "choices": ["a", "b"], "answer": 0}
    file = write(tmp_path / "long.jsonl", [long, {"prompt": "x =", "answer": "1"}])
    session, _ = answered(prose_of_demo, file)
    told = [notice.message for notice in session.notices]
    assert [each for each in told if each.startswith("2 of 3 answers have a prompt longer")]


@pytest.mark.usefixtures("own_folders")
def test_the_library_answers_tasks_and_continues_prompts(
    prose_of_demo: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "python.jsonl", rows()[:4])
    given = {"text": str(prose_of_demo), "tokens": 128, "seq_len": 32, "device": "cpu"}
    with engine.open("demo", **given) as model:
        found = model.symptoms(
            format="int2-g32", prompts=["import"], tasks=[file], sampling=p.Sampling(new_tokens=2)
        )
        (prompt,) = list(found)
        assert len(prompt.changed.tokens) == 2
        (task,) = found.document.tasks
        assert task.items == 4
        assert "python" in str(found)


def test_what_is_written_greedily_is_what_transformers_generates(demo: Loaded) -> None:
    """Whether an answer is right, against ``generate`` token by token."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(DEMO_PATH, dtype=torch.float32)
    found = encoder()
    pairs = []
    for line in written():
        for answer in line["answer"] if isinstance(line["answer"], list) else [line["answer"]]:
            pairs.append(found.pair(line["prompt"], answer))
    counts = JobCounts()
    steps = score_pairs(demo, pairs, {}, lambda: recipe_weights(demo, {}, counts), counts)
    scores = None
    while scores is None:
        try:
            next(steps)
        except StopIteration as end:
            scores = end.value
    for pair, score in zip(pairs, scores, strict=True):
        ids = torch.tensor([pair.context])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
            max_new_tokens=len(pair.continuation), min_new_tokens=len(pair.continuation),
        )  # fmt: skip
        same = tuple(made[0, len(pair.context) :].tolist()) == pair.continuation
        assert score.reference.greedy == same
        with torch.no_grad():
            logits = model(torch.tensor([[*pair.context, *pair.continuation]])).logits[0]
        logp = logits.log_softmax(-1)
        first = len(pair.context) - 1
        total = sum(float(logp[first + at, token]) for at, token in enumerate(pair.continuation))
        assert score.reference.log == pytest.approx(total, abs=1e-4)
    greedy = [score.reference.greedy for score in scores]
    assert any(greedy)
    assert not all(greedy)


def test_answers_without_a_likelihood_are_told() -> None:
    fine, none = Likelihood(-1.0, False), Likelihood(math.nan, False)
    (told,) = _not_finite([Scored(fine, fine), Scored(fine, none)])
    assert told.message.startswith("1 of 2 answers have no likelihood by the recipe")
