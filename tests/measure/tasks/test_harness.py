"""lm-eval's tasks in this process: what it asks is answered, and what it makes of that is read."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.errors import TextError, UsageError
from engine.measure.tasks.harness import Harness
from engine.measure.tasks.likelihoods import Likelihood, Scored
from engine.measure.tasks.named import check_tasks
from engine.measure.tasks.scoring import judged
from engine.texts.task_items import read_tasks
from tests.measure.tasks.items import rows, write


def likelihood(asked: tuple[str, str], salt: str) -> Likelihood:
    """Some number that depends on the text alone."""
    value = sum(ord(char) * (at + 1) for at, char in enumerate("".join(asked) + salt))
    return Likelihood(-1 - value % 997 / 50, value % 5 == 0)


def table(asked: list[tuple[str, str]], salt: str) -> dict[tuple[str, str], Likelihood]:
    return {each: likelihood(each, salt) for each in asked}


def stand_in(monkeypatch: pytest.MonkeyPatch, *, output: str = "loglikelihood") -> None:
    """A module with lm-eval's names: one task of two questions, one answer each."""
    module, api, model = (types.ModuleType(name) for name in ("lm_eval", "lm_eval.api", "model"))

    class LM:
        pass

    def simple_evaluate(
        *, model: Any, tasks: list[str], log_samples: bool, bootstrap_iters: int,
        random_seed: Any, numpy_random_seed: Any, torch_random_seed: Any,
    ) -> dict[str, Any]:  # fmt: skip
        if tasks == ["offline"]:
            raise ConnectionError("Couldn't reach 'some/data' on the Hub")
        if tasks == ["unknown"]:
            raise KeyError("unknown")
        asked = [("a", " b"), ("c", " d")]
        requests = [types.SimpleNamespace(args=each, task_name=tasks[0]) for each in asked]
        found = getattr(model, output)(requests)
        return {
            "samples": {
                tasks[0]: [
                    {
                        "doc_id": at, "target": pair[1], "arguments": [pair], "filter": "none",
                        "filtered_resps": [answer], "metrics": ["perplexity", "acc"],
                        "perplexity": answer[0], "acc": int(answer[1]),
                    }
                    for at, (pair, answer) in enumerate(zip(asked, found, strict=True))
                ]
            }
        }  # fmt: skip

    module.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    model.LM = LM  # type: ignore[attr-defined]
    for name, each in (("lm_eval", module), ("lm_eval.api", api), ("lm_eval.api.model", model)):
        monkeypatch.setitem(sys.modules, name, each)


def test_requests_are_heard_and_answers_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    harness = Harness(["mine"], "a folder")
    assert harness.requests == [("a", " b"), ("c", " d")]
    one = {("a", " b"): Likelihood(-1, True), ("c", " d"): Likelihood(-2, True)}
    other = {("a", " b"): Likelihood(-1, True), ("c", " d"): Likelihood(-3, False)}
    (result,) = harness.results(one, other)
    (metric,) = result.metrics
    assert (metric.metric, metric.both, metric.lost, metric.gained) == ("acc", 1, 1, 0)
    (item,) = result.items
    assert (item.id, item.reference, item.recipe) == ("1", " d", "")


@pytest.mark.parametrize(
    ("task", "output", "kind", "said"),
    [
        ("offline", "loglikelihood", TextError, "Couldn't reach 'some/data'.*no network"),
        ("unknown", "loglikelihood", UsageError, "cannot run unknown"),
        ("mine", "generate_until", UsageError, "mine has answers written"),
        ("mine", "loglikelihood_rolling", UsageError, "mine asks for perplexity"),
    ],
)
def test_what_lm_eval_cannot_do_is_said_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, task: str, output: str, kind: type[Exception], said: str
) -> None:
    stand_in(monkeypatch, output=output)
    with pytest.raises(kind, match=said):
        Harness([task], "a folder")


def test_a_name_needs_lm_eval_and_a_file_of_its_own_needs_trust(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="lm-eval is not installed: pip install lm-eval"):
        check_tasks(["arc_easy"], trusted=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    file = tmp_path / "task.yaml"
    file.touch()
    with pytest.raises(UsageError, match="--trust-remote-code"):
        check_tasks([str(file)], trusted=False)
    check_tasks([str(file), "arc_easy"], trusted=True)


def test_lm_evals_own_task_is_judged_as_a_file_of_the_same_items_is(tmp_path: Path) -> None:
    """Needs lm-eval: a task of its own, with data on disk, in the same metrics."""
    pytest.importorskip("lm_eval")
    from tests.measure.tasks.renew import config

    file = write(tmp_path / "python.jsonl", rows())
    task = tmp_path / "python.yaml"
    task.write_text(yaml.safe_dump(config(file)), encoding="utf-8")
    harness = Harness([str(task)], "a folder")
    (found,) = harness.results(table(harness.requests, "one"), table(harness.requests, "other"))
    items = []
    for item in read_tasks(file):
        asked = [(item.prompt, each) for each in item.continuations()]
        assert set(asked) <= set(harness.requests)
        scores = [Scored(likelihood(each, "one"), likelihood(each, "other")) for each in asked]
        items.append(judged(item, scores))
    for metric in found.metrics:
        pairs = [each.correct[metric.metric] for each in items]
        assert metric.both == pairs.count((True, True))
        assert metric.lost == pairs.count((True, False))
        assert metric.gained == pairs.count((False, True))
    changed = sum(each.answers[0] != each.answers[1] for each in items)
    assert found.changed >= changed > 0
