"""Triage: what a checkpoint's weights alone tell, layer by layer from the files, with no model."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from engine import protocol as p
from engine.checkpoint import DiskLayer, read_layer
from engine.errors import FormatError
from engine.formats.grammar import Format, parse_format, why_not_alone
from engine.formats.grammar import why_not_built as not_built
from engine.formats.storage import why_not_held as not_held
from engine.measure.counts import Account
from engine.measure.weights.fused import Fused, Variant, variant_for
from engine.measure.weights.reconstruction import WeightErrors, compare, weight_errors
from engine.measure.weights.statistics import WeightStatistics, weight_statistics
from engine.quant import QUANTISER_VERSION
from engine.quant.quantize import dequantized
from engine.service.jobs import Steps
from engine.workspace import Workspace

PAYS = 1 << 31
"""Weights, once for each format, from which on a kernel is worth the seconds of compiling it."""
CHUNK = 1 << 19
"""Weights that are approximated at a time where nothing is compiled."""


def triage(workspace: Workspace, formats: Sequence[str], job: str) -> Steps:
    """Statistics of every layer's weights, and their errors in each format.

    One layer is in memory at a time, with its approximation.

    Yields:
        `Learned` with one `LayerWeights` at a time, `Fallback` for layers a format cannot hold,
        `Progress`, `Notice` if nothing can be compiled where that would pay.

    Raises:
        FormatError: if a format does not parse or is not built.
    """
    begun = time.perf_counter()
    account = Account(timings={"read_s": 0.0})
    parsed = [parse_format(text) for text in formats]
    for format in parsed:
        for why in (not_built(format), why_not_alone(format)):
            if why is not None:
                raise FormatError(why)
    names = [str(format) for format in parsed]
    # Loading the model may correct the table meanwhile: what was begun is finished.
    rows = dict(workspace.rows)
    keys = {
        name: workspace.key(
            "weights",
            layer=name,
            formats=names,
            sigma=workspace.settings.sigma,
            quantiser=QUANTISER_VERSION,
            scale_dtype=workspace.scale_dtype,
        )
        for name in rows
    }
    for name, row in rows.items():
        for format in parsed:
            if (why := not_held(format, row.shape)) is not None:
                yield p.Fallback(layer=name, format=str(format), why=why)
    known = workspace.known(list(keys.values()))
    found = {name: known[key] for name, key in keys.items() if key in known}
    yield from account.found([keys[name] for name in found], list(found.values()))
    todo = [name for name in keys if name not in found]
    scale_dtype: torch.dtype = getattr(torch, workspace.scale_dtype)
    kernels = Fused(_worth_compiling([rows[name] for name in todo], parsed, scale_dtype))
    told = False
    for done, name in enumerate(todo, len(found)):
        yield p.Progress(
            job=job, done=done, total=len(keys), detail=name,
            seconds_left=_left(begun, done - len(found), len(todo)),
        )  # fmt: skip
        with _leaving_room(workspace):
            fact = _layer(workspace, rows[name], parsed, kernels, account)
        if kernels.why and not told:
            told = True
            yield p.Notice("info", kernels.why)
        yield account.learnt(keys[name], fact)
    account.timings["total_s"] = time.perf_counter() - begun
    return account.outcome()


@contextmanager
def _leaving_room(workspace: Workspace) -> Iterator[None]:
    """Compute on one thread while the model library is being imported beside."""
    threads = torch.get_num_threads()
    if workspace.network is None and threads > 1:
        torch.set_num_threads(max(1, threads - 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _left(begun: float, done: int, total: int) -> float:
    return (time.perf_counter() - begun) / done * (total - done) if done else float("nan")


@torch.no_grad()
def _layer(
    workspace: Workspace,
    row: DiskLayer,
    formats: Sequence[Format],
    kernels: Fused,
    account: Account,
) -> p.LayerWeights:
    checkpoint = workspace.need_checkpoint()
    weight = account.timed("read_s", lambda: read_layer(checkpoint, row))()
    statistics = weight_statistics(weight, workspace.settings.sigma)
    errors: dict[str, p.WeightError] = {}
    refused: dict[str, str] = {}
    scale_dtype: torch.dtype = getattr(torch, workspace.scale_dtype)
    for format in formats:
        if (why := not_held(format, row.shape)) is not None:
            refused[str(format)] = why
            continue
        try:
            error = _errors(weight, format, scale_dtype, row.name, kernels)
        except FormatError as failure:
            refused[str(format)] = str(failure)
            continue
        errors[str(format)] = p.WeightError(
            error.frobenius, error.relative, error.max_abs, error.mean_abs, error.sqnr_db
        )
    return _fact(row.name, statistics, errors, refused)


def _errors(
    weight: torch.Tensor, format: Format, scale_dtype: torch.dtype, name: str, kernels: Fused
) -> WeightErrors:
    found = kernels.errors(weight, format, scale_dtype)
    if found is not None:
        return found

    def approximate(part: torch.Tensor) -> torch.Tensor:
        return dequantized(part, format, scale_dtype, name=name)

    by_row = not any(method.name == "hadamard" for method in format.methods)
    if by_row and format.family == "integer" and format.strategy in ("group", "channel"):
        # No group crosses a row: Ŵ is made of a few rows that stay in the processor's cache.
        return weight_errors(weight, approximate, max(1, CHUNK // max(1, weight.shape[-1])))
    return compare(weight, approximate(weight))


def _worth_compiling(
    rows: Iterable[DiskLayer], formats: Iterable[Format], scale_dtype: torch.dtype
) -> set[Variant]:
    """The kernels that so much of the work needs that it is done sooner with them."""
    weights = Counter[Variant]()
    for row in rows:
        # What is stored with a scale beside it is read as float32.
        dtype = torch.float32 if row.scales else getattr(torch, row.dtype)
        for format in formats:
            if (variant := variant_for(row.shape, dtype, format, scale_dtype)) is not None:
                weights[variant] += row.parameters
    return {variant for variant, count in weights.items() if count >= PAYS}


def _fact(
    layer: str,
    found: WeightStatistics,
    errors: dict[str, p.WeightError],
    refused: dict[str, str],
) -> p.LayerWeights:
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
        errors=errors,
        refused=refused,
    )
