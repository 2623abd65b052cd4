"""Triage: statistics and errors of a checkpoint's weights, layer by layer, without a model.

Statistics of a layer are one fact, and its error in each format is another: a different list of
formats measures only the new ones.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
import torch

from engine import protocol as p
from engine.checkpoint import DiskLayer, read_layer
from engine.errors import FormatError
from engine.formats.grammar import Format, parse_format, why_not_alone
from engine.formats.grammar import why_not_built as not_built
from engine.formats.storage import why_not_held as not_held
from engine.measure.counts import FACTS_IN_ONE_EVENT, JobCounts
from engine.measure.weights.compiled_kernel import Fused, Variant, variant_for
from engine.measure.weights.reconstruction import WeightErrors, compare, weight_errors
from engine.measure.weights.statistics import WeightStatistics, weight_statistics
from engine.quant.arithmetic import arithmetic_of
from engine.quant.quantize import dequantized
from engine.service.jobs import Steps
from engine.service.process import is_own_process
from engine.store import keys
from engine.workspace import Loaded, Opened

PAYS = 1 << 31
"""Weights times formats from which a kernel is worth the seconds of compiling it."""
CHUNK = 1 << 19
"""Weights that are approximated at a time without a compiled kernel."""
LAYERS_AT_ONCE = 200
"""Layers looked up in the store in one step."""
ANNOUNCE_SECONDS = 0.1
"""Results of small layers are announced together: every event is written to disk."""

Known = dict[str, p.AnyFact]
Events = Generator[p.AnyEvent | None, None, None]


@dataclass(frozen=True)
class Wanted:
    """The facts of one layer that a triage needs."""

    row: DiskLayer
    statistics: str
    """Key of the statistics."""
    errors: dict[Format, str]
    """Key of the error in each format."""
    listed: keys.ListedWeights
    """Key of all of them together, in the previous version."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """All keys, in the order in which their facts are announced."""
        return self.statistics, *self.errors.values()


def triage(opened: Opened, formats: Sequence[str], job: str) -> Steps:
    """Statistics of every layer's weights, and their errors in each format.

    One layer and its approximation are in memory at a time. A layer is announced once all its facts
    are known.

    Yields:
        `Learned` with a `LayerWeights` and a `LayerError` for each format, of one or more layers;
        `Fallback` for layers a format cannot hold, `Progress`, and a `Notice` if a kernel would pay
        but cannot be compiled.

    Raises:
        FormatError: a format does not parse or is not built.
    """
    begun = time.perf_counter()
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
    for at in range(0, len(rows), LAYERS_AT_ONCE):
        wanted = [_wanted(opened, row, parsed) for row in rows[at : at + LAYERS_AT_ONCE]]
        yield from _from_store(opened, wanted, todo, counts)
    yield from _measured(opened, todo, len(rows), counts, job)
    counts.timings["total_s"] = time.perf_counter() - begun
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

    # Facts of the previous version are split, and stored as those of this version.
    old = opened.known(listed := [each.listed.address for each in partly])
    split: list[tuple[str, p.AnyFact]] = []
    for each, address in zip(partly, listed, strict=True):
        fact = old.get(address)
        if isinstance(fact, p.LayerWeights):
            split += _split(each, fact)
            counts.known += 1
        else:
            todo.append((each, {key: known[key] for key in each.addresses if key in known}))
    yield from _announced(split, True)
    yield None


def _split(wanted: Wanted, fact: p.LayerWeights) -> list[tuple[str, p.AnyFact]]:
    found: list[tuple[str, p.AnyFact]] = [
        (wanted.statistics, msgspec.structs.replace(fact, errors={}, refused={}))
    ]
    for format, key in wanted.errors.items():
        text = str(format)
        error, why = fact.errors.get(text), fact.refused.get(text, "")
        found.append((key, p.LayerError(fact.layer, text, error, why)))
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
    scale_dtype: torch.dtype = getattr(torch, opened.scale_dtype)
    kernels = Fused(_worth_compiling(todo, scale_dtype))
    reported = False
    waiting: list[tuple[str, p.AnyFact]] = []
    for done, (wanted, known) in enumerate(todo):
        yield p.Progress(
            job=job, done=total - len(todo) + done, total=total, phase="reading",
            subject=wanted.row.name, seconds_left=_left(begun, done, len(todo)),
        )  # fmt: skip
        with _leaving_room(opened):
            waiting += _layer(opened, wanted, known, kernels, counts)
        counts.measured += 1
        if kernels.why and not reported:
            reported = True
            yield p.Notice("info", kernels.why)
        if time.perf_counter() - announced > ANNOUNCE_SECONDS:
            yield from _announced(waiting, True)
            announced, waiting = time.perf_counter(), []
    yield from _announced(waiting, True)


@contextmanager
def _leaving_room(opened: Opened) -> Iterator[None]:
    """In an engine process, use one thread less while the model library is imported."""
    if not is_own_process():
        yield
        return
    threads = torch.get_num_threads()
    if not opened.workspace.every(Loaded) and threads > 1:
        torch.set_num_threads(max(1, threads - 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _left(begun: float, done: int, total: int) -> float:
    return (time.perf_counter() - begun) / done * (total - done) if done else float("nan")


@torch.no_grad()
def _layer(
    opened: Opened, wanted: Wanted, known: Known, kernels: Fused, counts: JobCounts
) -> list[tuple[str, p.AnyFact]]:
    """All facts of a layer; known ones are not measured again."""
    row = wanted.row
    weight = counts.timed("read_s", lambda: read_layer(opened.checkpoint, row))()
    scale_dtype: torch.dtype = getattr(torch, opened.scale_dtype)
    found = dict(known)
    if wanted.statistics not in found:
        statistics = weight_statistics(weight, opened.settings.sigma)
        found[wanted.statistics] = _statistics(row.name, statistics)
    for format, key in wanted.errors.items():
        if key not in found:
            found[key] = _error(weight, format, scale_dtype, row, kernels)
    return [(key, found[key]) for key in wanted.addresses]


def _error(
    weight: torch.Tensor, format: Format, scale_dtype: torch.dtype, row: DiskLayer, kernels: Fused
) -> p.LayerError:
    text = str(format)
    if (why := not_held(format, row.shape)) is not None:
        return p.LayerError(row.name, text, refused=why)
    try:
        error = _errors(weight, format, scale_dtype, row.name, kernels)
    except FormatError as failure:
        return p.LayerError(row.name, text, refused=str(failure))
    return p.LayerError(
        row.name,
        text,
        p.WeightError(
            error.frobenius, error.relative, error.max_abs, error.mean_abs, error.sqnr_db
        ),
    )


def _errors(
    weight: torch.Tensor, format: Format, scale_dtype: torch.dtype, name: str, kernels: Fused
) -> WeightErrors:
    found = kernels.errors(weight, format, scale_dtype)
    if found is not None:
        return found

    def approximate(part: torch.Tensor) -> torch.Tensor:
        return dequantized(part, format, scale_dtype, name=name)

    rotated = any(method.name == "hadamard" for method in format.methods)
    if not rotated and arithmetic_of(format).by_row(format):
        # No group crosses a row: Ŵ is made of a few rows that stay in the processor's cache.
        return weight_errors(weight, approximate, max(1, CHUNK // max(1, weight.shape[-1])))
    return compare(weight, approximate(weight))


def _worth_compiling(
    todo: Iterable[tuple[Wanted, Known]], scale_dtype: torch.dtype
) -> set[Variant]:
    """The kernels that so much of the work needs that it is done sooner with them."""
    weights = Counter[Variant]()
    for wanted, known in todo:
        row = wanted.row
        # What is stored with a scale beside it is read as float32.
        dtype = torch.float32 if row.scales else getattr(torch, row.dtype)
        for format, key in wanted.errors.items():
            variant = variant_for(row.shape, dtype, format, scale_dtype)
            if key not in known and variant is not None:
                weights[variant] += row.parameters
    return {variant for variant, count in weights.items() if count >= PAYS}


def _statistics(layer: str, found: WeightStatistics) -> p.LayerWeights:
    worst = max(found.columns, key=lambda channel: channel.peak, default=None)
    return p.LayerWeights(
        layer=layer,
        outliers=p.Outliers(
            found.outliers.sigma, found.outliers.count, found.outliers.fraction, found.max_abs
        ),
        range_ratio=found.range_ratio,
        waste=found.waste,
        kurtosis=found.kurtosis,
        nan=found.nan,
        inf=found.inf,
        zero_rows=found.zero_rows,
        dead_columns=found.dead_columns,
        denormals=found.denormals,
        mean=found.mean,
        std=found.std,
        worst_column=worst.index if worst is not None else -1,
        worst_column_sigma=worst.peak if worst is not None else 0.0,
    )
