"""Tasks of files and of lm-eval, answered by the reference and by a recipe."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine import protocol as p
from engine.errors import TextError
from engine.formats.grammar import Format
from engine.measure.counts import JobCounts
from engine.measure.tasks.harness import Harness
from engine.measure.tasks.likelihoods import Scored, Weights, score_pairs
from engine.measure.tasks.pairs import Encoder, Pair
from engine.measure.tasks.scoring import by_task, judged
from engine.service.jobs import OnLane
from engine.texts.task_items import Item, is_task_file, read_files
from engine.workspace import Loaded


def score_tasks(
    loaded: Loaded,
    tasks: Sequence[str],
    formats: Mapping[str, Format],
    weights: Weights,
    counts: JobCounts,
) -> Generator[p.AnyEvent | OnLane | None, None, list[p.TaskResult]]:
    """Answer tasks by the reference and by a recipe.

    Args:
        loaded: the model.
        tasks: files of JSON lines, and names of lm-eval's tasks.
        formats: the recipe; layers that are not named are kept.
        weights: makes its weights.
        counts: of the job.

    Yields:
        See `score_pairs`.

    Raises:
        TextError: a file, or what lm-eval needs, cannot be read.
        UsageError: a task cannot be scored.
        OutOfMemoryError: the recipe does not fit beside the model.
    """
    files = [Path(each) for each in tasks if is_task_file(each)]
    names = [each for each in tasks if not is_task_file(each)]
    items = read_files(files)
    encoder = _encoder(loaded)
    asked: list[tuple[str, str]] = []
    harness = None
    if names:
        yield OnLane("export")  # lm-eval reads its data and builds its requests for long
        harness = Harness(names, str(loaded.opened.path))
        asked = harness.requests
        yield OnLane("compute")
    pairs = [_pairs(encoder, item) for item in items]
    of_harness = {each: encoder.pair(*each) for each in asked}
    rows = [pair for each in pairs for pair in each] + list(of_harness.values())
    scores = yield from score_pairs(loaded, rows, formats, weights, counts)
    table = dict(zip(rows, scores, strict=True))
    results = by_task(
        (item, judged(item, [table[pair] for pair in each]))
        for item, each in zip(items, pairs, strict=True)
    )
    if harness is not None:
        yield OnLane("export")
        results += _of_harness(harness, {each: table[pair] for each, pair in of_harness.items()})
        yield OnLane("compute")
    return results


def _pairs(encoder: Encoder, item: Item) -> list[Pair]:
    try:
        return [encoder.pair(item.prompt, each) for each in item.continuations()]
    except TextError as error:
        raise TextError(f"item {item.id} of {item.task}: {error}") from error


def _of_harness(harness: Harness, table: Mapping[tuple[str, str], Scored]) -> list[p.TaskResult]:
    return harness.results(
        {each: scored.reference for each, scored in table.items()},
        {each: scored.recipe for each, scored in table.items()},
    )


def _encoder(loaded: Loaded) -> Encoder:
    from engine.model.load import load_tokenizer

    settings = loaded.settings
    tokenizer: Any = load_tokenizer(
        loaded.opened.path,
        trust_remote_code=settings.trust_remote_code,
        follow_links=settings.follow_links,
    )
    text = loaded.network.config.get_text_config()
    return Encoder(tokenizer, getattr(text, "max_position_embeddings", None))
