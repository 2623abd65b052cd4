"""Items of tasks, answered by likelihood, by the reference and by a recipe.

As lm-eval has it (``ConfigurableTask.process_results``): ``acc`` takes the choice whose
continuation is most likely, ``acc_norm`` the one with the largest log-likelihood over its
characters; of several that are equal, the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from engine import protocol as p
from engine.measure.tasks.likelihoods import Likelihood, Scored
from engine.texts.task_items import Item

LISTED = 100
"""Items whose answer changed that are listed."""
SHOWN = 160
"""Characters of a prompt or an answer that are shown: the last ones of a prompt."""


class Judged(NamedTuple):
    """One item, answered by both."""

    id: str
    prompt: str
    right: str
    answers: tuple[str, str]
    """Of the reference and of the recipe."""
    correct: Mapping[str, tuple[bool, bool]]
    """By metric; the first one is what flips are told by."""


def judged(item: Item, scores: Sequence[Scored]) -> Judged:
    """One item of a file.

    Args:
        item: the question.
        scores: of its continuations, in their order.
    """
    one, other = [each.reference for each in scores], [each.recipe for each in scores]
    if item.right < 0:
        return _exact(item, one, other)
    length = [len(choice) for choice in item.choices]
    plain = best([x.log for x in one]), best([x.log for x in other])
    by_length = _over(one, length), _over(other, length)
    return Judged(
        item.id,
        item.prompt,
        item.choices[item.right],
        (item.choices[plain[0]], item.choices[plain[1]]),
        {
            "acc": (plain[0] == item.right, plain[1] == item.right),
            "acc_norm": (by_length[0] == item.right, by_length[1] == item.right),
        },
    )


def _exact(item: Item, one: Sequence[Likelihood], other: Sequence[Likelihood]) -> Judged:
    answers = _written(item, one), _written(item, other)
    correct = bool(answers[0]), bool(answers[1])
    return Judged(item.id, item.prompt, item.choices[0], answers, {"exact": correct})


def _written(item: Item, found: Sequence[Likelihood]) -> str:
    """The first answer that is written greedily; empty if none is."""
    return next((a for a, x in zip(item.choices, found, strict=True) if x.greedy), "")


def _over(found: Sequence[Likelihood], length: Sequence[int]) -> int:
    return best([x.log / n for x, n in zip(found, length, strict=True)])


def best(values: Sequence[float]) -> int:
    """Place of the first of the largest values, as NumPy's ``argmax`` has it."""
    return max(range(len(values)), key=values.__getitem__)


def task_result(name: str, items: Sequence[Judged]) -> p.TaskResult:
    """What came of one task.

    Args:
        name: of the task.
        items: of it, at least one; each has the same metrics.
    """
    first = next(iter(items[0].correct))
    changed = [each for each in items if each.answers[0] != each.answers[1]]
    flipped = [each for each in items if len(set(each.correct[first])) == 2]
    listed = list(dict.fromkeys([*map(id, flipped), *map(id, changed)]))[:LISTED]
    of = {id(each): each for each in items}
    return p.TaskResult(
        name,
        tuple(_agreeing(metric, items) for metric in items[0].correct),
        len({*map(id, changed), *map(id, flipped)}),
        tuple(_answered(of[each], first) for each in listed),
    )


def by_task(items: Iterable[tuple[Item, Judged]]) -> list[p.TaskResult]:
    """The results of every task of a file, in the order in which each first occurs."""
    tasks: dict[tuple[str, bool], list[Judged]] = {}
    for item, found in items:
        tasks.setdefault((item.task, item.right < 0), []).append(found)
    names = [name for name, _ in tasks]
    return [
        task_result(f"{name} (exact)" if exact and names.count(name) > 1 else name, of)
        for (name, exact), of in tasks.items()
    ]


def _agreeing(metric: str, items: Sequence[Judged]) -> p.Agreeing:
    counts = dict.fromkeys(((True, True), (True, False), (False, True), (False, False)), 0)
    for each in items:
        counts[each.correct[metric]] += 1
    return p.Agreeing(metric, *counts.values())


def _answered(item: Judged, metric: str) -> p.Answered:
    return p.Answered(
        item.id,
        item.prompt[-SHOWN:],
        item.right[:SHOWN],
        item.answers[0][:SHOWN],
        item.answers[1][:SHOWN],
        *item.correct[metric],
    )
