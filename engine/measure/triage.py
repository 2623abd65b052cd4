"""Triage: what a checkpoint's weights alone tell, layer by layer from the files, with no model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from engine import protocol as p
from engine.checkpoint import DiskLayer, read_layer
from engine.errors import FormatError
from engine.jobs import Steps
from engine.measure.account import Account
from engine.measure.weights import WeightStatistics, compare, weight_statistics
from engine.quant import QUANTISER_VERSION, Format, dequantized, parse_format
from engine.quant import why_not_built as not_built
from engine.quant import why_not_held as not_held
from engine.workspace import Workspace


def triage(workspace: Workspace, formats: Sequence[str], job: str) -> Steps:
    """Statistics of every layer's weights, and their errors in each format.

    One layer is in memory at a time, with its approximation.

    Yields:
        `Learned` with one `LayerWeights` at a time, `Fallback` for layers a format cannot hold,
        `Progress`.

    Raises:
        FormatError: if a format does not parse or is not built.
    """
    begun = time.perf_counter()
    account = Account(timings={"read_s": 0.0})
    parsed = [parse_format(text) for text in formats]
    for format in parsed:
        if (why := not_built(format)) is not None:
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
    for done, name in enumerate(todo, len(found)):
        yield p.Progress(
            job=job, done=done, total=len(keys), detail=name,
            seconds_left=_left(begun, done - len(found), len(todo)),
        )  # fmt: skip
        with _leaving_room(workspace):
            fact = _layer(workspace, rows[name], parsed, account)
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
    workspace: Workspace, row: DiskLayer, formats: Sequence[Format], account: Account
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
            approx = dequantized(weight, format, scale_dtype, name=row.name)
        except FormatError as failure:
            refused[str(format)] = str(failure)
            continue
        error = compare(weight, approx)
        errors[str(format)] = p.WeightError(
            error.frobenius, error.relative, error.max_abs, error.mean_abs, error.sqnr_db
        )
        del approx
    return _fact(row.name, statistics, errors, refused)


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
