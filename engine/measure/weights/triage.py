"""Triage: statistics and errors of a checkpoint's weights, layer by layer, without a model.

Statistics of a layer are one fact, and its error in each format is another: a different list of
formats measures only the new ones.

Integer formats and statistics come from one compiled pass over the rows, on all cores, while the
next layers are read; torch is imported only for what that pass does not know.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing

from engine import protocol as p
from engine.checkpoint import DiskLayer
from engine.errors import FormatError
from engine.formats.grammar import Format, parse_format, why_not_alone
from engine.formats.grammar import why_not_built as not_built
from engine.formats.storage import why_not_held as not_held
from engine.measure.counts import FACTS_IN_ONE_EVENT, JobCounts
from engine.measure.weights.fused import kernels
from engine.measure.weights.measuring import Known, Measuring, Wanted
from engine.service.jobs import Steps
from engine.store import keys
from engine.workspace import Opened

LAYERS_AT_ONCE = 200
"""Layers looked up in the store in one step."""
ANNOUNCE_SECONDS = 0.1
"""Results of small layers are announced together: every event is written to disk."""

Events = Generator[p.AnyEvent | None, None, None]


def triage(opened: Opened, formats: Sequence[str], job: str) -> Steps:
    """Statistics of every layer's weights, and their errors in each format.

    A few spans of rows are in memory at a time, or the whole weight if a format needs it. A layer
    is announced once all its facts are known.

    Yields:
        `Learned` with a `LayerWeights` and a `LayerError` for each format, of one or more layers;
        `Fallback` for layers a format cannot hold, `Progress`, and a `Notice` if the pass
        cannot be compiled.

    Raises:
        FormatError: a format does not parse or is not built.
    """
    counts = JobCounts(timings={"read_s": 0.0})
    parsed = [parse_format(text) for text in formats]
    for format in parsed:
        for why in (not_built(format), why_not_alone(format)):
            if why is not None:
                raise FormatError(why)
    # Loading the model may correct the table meanwhile: finish with the old one.
    rows = list(opened.rows.values())
    for row in rows:
        for format in parsed:
            if (why := not_held(format, row.shape)) is not None:
                yield p.Fallback(layer=row.name, format=str(format), why=why)
    todo: list[tuple[Wanted, Known]] = []
    seen: dict[str, p.LayerWeights] = {}
    for at in range(0, len(rows), LAYERS_AT_ONCE):
        wanted = [_wanted(opened, row, parsed) for row in rows[at : at + LAYERS_AT_ONCE]]
        yield from _kept(_from_store(opened, wanted, todo, counts), seen)
    yield from _kept(_measured(opened, todo, len(rows), counts, job), seen)
    yield from _swapped(opened, rows, seen)
    return counts.outcome()


def _wanted(opened: Opened, row: DiskLayer, formats: Sequence[Format]) -> Wanted:
    on, name, scale_dtype = opened.files, row.name, opened.scale_dtype
    sigma, texts = opened.settings.sigma, tuple(map(str, formats))

    def error(text: str) -> keys.WeightError:
        return keys.WeightError(on=on, layer=name, format=text, scale_dtype=scale_dtype)

    return Wanted(
        row=row,
        statistics=keys.WeightStatistics(on=on, layer=name, sigma=sigma).address,
        errors={each: error(str(each)).address for each in formats},
        listed=keys.ListedWeights(
            on=on, layer=name, formats=texts, sigma=sigma, scale_dtype=scale_dtype
        ),
    )


def _from_store(
    opened: Opened, wanted: list[Wanted], todo: list[tuple[Wanted, Known]], counts: JobCounts
) -> Events:
    """Announce layers whose facts are all stored; add the others to ``todo``."""
    known = opened.known([key for each in wanted for key in each.addresses])
    whole = [each for each in wanted if all(key in known for key in each.addresses)]
    partly = [each for each in wanted if any(key not in known for key in each.addresses)]
    counts.known += len(whole)
    yield from _announced([(key, known[key]) for each in whole for key in each.addresses], False)

    # Facts of the previous version are split: their errors are still what they were.
    old = opened.known(listed := [each.listed.address for each in partly])
    for each, address in zip(partly, listed, strict=True):
        found = {key: known[key] for key in each.addresses if key in known}
        fact = old.get(address)
        todo.append((each, found | _errors(each, fact)))
    yield None


def _errors(wanted: Wanted, fact: p.AnyFact | None) -> Known:
    """The errors in a fact that holds all of a layer."""
    if not isinstance(fact, p.LayerWeights):
        return {}
    found: Known = {}
    for format, key in wanted.errors.items():
        text = str(format)
        error, why = fact.errors.get(text), fact.refused.get(text, "")
        found[key] = p.LayerError(fact.layer, text, error, why)
    return found


def _announced(facts: list[tuple[str, p.AnyFact]], fresh: bool) -> Iterator[p.Learned]:
    for at in range(0, len(facts), FACTS_IN_ONE_EVENT):
        some = facts[at : at + FACTS_IN_ONE_EVENT]
        yield p.Learned(tuple(key for key, _ in some), tuple(fact for _, fact in some), fresh)


def _measured(
    opened: Opened,
    todo: list[tuple[Wanted, Known]],
    total: int,
    counts: JobCounts,
    job: str,
) -> Events:
    """Measure what is missing of each layer, and announce all of it."""
    begun = announced = time.perf_counter()
    waiting: list[tuple[str, p.AnyFact]] = []
    if todo and isinstance(why := kernels(), str):
        yield p.Notice("info", why)
    with closing(Measuring(opened, todo, counts)) as measuring:
        for done, (wanted, known) in enumerate(todo):
            yield p.Progress(
                job=job, done=total - len(todo) + done, total=total, phase="reading",
                subject=wanted.row.name, seconds_left=_left(begun, done, len(todo)),
            )  # fmt: skip
            found = yield from measuring.facts(wanted, known)
            while measuring.notes:
                yield p.Notice("warning", measuring.notes.pop(0))
            waiting += [(key, found[key]) for key in wanted.addresses]
            counts.measured += 1
            if time.perf_counter() - announced > ANNOUNCE_SECONDS:
                yield from _announced(waiting, True)
                announced, waiting = time.perf_counter(), []
    yield from _announced(waiting, True)


def _kept(events: Events, seen: dict[str, p.LayerWeights]) -> Events:
    """Pass events on, and note the statistics among them."""
    for event in events:
        if isinstance(event, p.Learned):
            seen |= {fact.layer: fact for fact in event.facts if isinstance(fact, p.LayerWeights)}
        yield event


def _swapped(opened: Opened, rows: Sequence[DiskLayer], seen: dict[str, p.LayerWeights]) -> Events:
    """Compare layers with each other, once all are known."""
    key = keys.Swapped(on=opened.files).address
    if known := opened.known([key]):
        yield p.Learned((key,), (known[key],), fresh=False)
        return
    from engine.measure.weights.belonging import Placed, misplaced

    placed = [
        Placed(row.name, row.kind, row.shape, seen[row.name])
        for row in rows
        if row.block is not None and row.name in seen
    ]
    yield p.Learned((key,), (p.Swapped(misplaced(placed)),))


def _left(begun: float, done: int, total: int) -> float:
    return (time.perf_counter() - begun) / done * (total - done) if done else float("nan")
