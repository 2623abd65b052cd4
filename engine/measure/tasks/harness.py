"""Tasks of lm-eval, where it is installed: it asks and judges, and the network here answers.

lm-eval calls its model with all requests at once, and a job must not hold the thread so long. So it
is run once to hear what it asks, the requests are scored as any others are, and it is run again for
the reference and for the recipe, with the answers that are known by then. It builds the same
requests each time: its examples are drawn with a fixed seed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from engine import protocol as p
from engine.errors import EngineError, TextError, UsageError, first_line
from engine.measure.tasks.likelihoods import Likelihood
from engine.measure.tasks.scoring import Judged, best, task_result

Asked: TypeAlias = tuple[str, str]
"""Context and continuation."""
Answers: TypeAlias = Mapping[Asked, Likelihood]

FIRST = ("acc", "acc_norm", "exact_match")
"""Metrics in the order in which flips are told by one of them."""


class Harness:
    """Tasks of lm-eval.

    Args:
        names: as lm-eval's ``--tasks`` takes them.
        tokenizer: its name or folder, which lm-eval writes down.

    Raises:
        TextError: a task or its data cannot be loaded.
        UsageError: lm-eval has no such task, or one has texts written, or asks for something else
            than the likelihood of answers.
    """

    def __init__(self, names: Sequence[str], tokenizer: str) -> None:
        self.names, self._tokenizer = list(names), tokenizer
        asked: dict[Asked, None] = {}

        def hear(requests: Sequence[Asked]) -> list[Likelihood]:
            asked.update(dict.fromkeys(requests))
            return [Likelihood(0.0, False)] * len(requests)

        self._run(hear)
        self.requests: list[Asked] = list(asked)

    def results(self, reference: Answers, recipe: Answers) -> list[p.TaskResult]:
        """What lm-eval makes of the answers of both."""
        one = self._run(lambda requests: [reference[each] for each in requests])
        other = self._run(lambda requests: [recipe[each] for each in requests])
        return [
            task_result(name, _judged(name, one[name], other[name])) for name in one if one[name]
        ]

    def _run(
        self, answer: Callable[[Sequence[Asked]], list[Likelihood]]
    ) -> dict[str, list[dict[str, Any]]]:
        """The samples that lm-eval logs, by task."""
        from lm_eval import simple_evaluate

        try:
            found = simple_evaluate(
                model=_answering(answer, self._tokenizer),
                tasks=self.names,
                log_samples=True,
                bootstrap_iters=0,
                random_seed=None,
                numpy_random_seed=None,
                torch_random_seed=None,
            )
        except EngineError:
            raise
        except (KeyError, ValueError) as error:
            raise UsageError(f"lm-eval cannot run {', '.join(self.names)}: {error}") from error
        except Exception as error:
            raise TextError(
                f"lm-eval cannot load {', '.join(self.names)}: {first_line(error)}; where there is "
                f"no network, fetch its data on another machine first"
            ) from error
        samples: dict[str, list[dict[str, Any]]] = found["samples"]
        return samples


def installed() -> bool:
    """Whether lm-eval can be imported."""
    return importlib.util.find_spec("lm_eval") is not None


def _answering(answer: Callable[[Sequence[Asked]], list[Likelihood]], tokenizer: str) -> Any:
    """A model of lm-eval that asks ``answer``."""
    from lm_eval.api.model import LM

    class Answering(LM):  # type: ignore[misc]
        tokenizer_name = tokenizer

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return [(x.log, x.greedy) for x in answer([each.args for each in requests])]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            raise UsageError(
                f"{_tasks(requests)} asks for perplexity, which is no answer: `qtui eval --text` "
                f"measures it"
            )

        def generate_until(self, requests: list[Any]) -> list[str]:
            raise UsageError(
                f"{_tasks(requests)} has answers written, which is not supported: name a task that "
                f"compares the likelihood of answers"
            )

    return Answering()


def _tasks(requests: Sequence[Any]) -> str:
    return ", ".join(sorted({str(each.task_name) for each in requests}))


def _judged(
    name: str, one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]
) -> list[Judged]:
    """The items of a task, from what lm-eval logs of both runs.

    Raises:
        UsageError: no metric of the task says whether an answer is right.
    """
    first = one[0]["filter"]
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a["filter"] == b["filter"] == first]
    metrics = [
        metric
        for metric in sorted(one[0]["metrics"], key=_order)
        if all(_is_verdict(each[metric]) for pair in pairs for each in pair)
    ]
    if not metrics:
        raise UsageError(
            f"{name} has no metric that says which answers are right: it has "
            f"{', '.join(one[0]['metrics'])}"
        )
    return [
        Judged(
            str(a["doc_id"]),
            str(a["arguments"][0][0]),
            str(a["target"]),
            (_answer(a), _answer(b)),
            {metric: (a[metric] == 1, b[metric] == 1) for metric in metrics},
        )
        for a, b in pairs
    ]


def _order(metric: str) -> int:
    return FIRST.index(metric) if metric in FIRST else len(FIRST)


def _is_verdict(value: object) -> bool:
    return isinstance(value, int | float) and value in (0, 1)


def _answer(sample: Mapping[str, Any]) -> str:
    """The most likely continuation; of one alone, itself where it is written greedily."""
    found = sample["filtered_resps"]
    texts = [str(each[1]) for each in sample["arguments"]]
    if len(found) == 1:
        return texts[0] if found[0][1] else ""
    return texts[best([float(each[0]) for each in found[: len(texts)]])]
