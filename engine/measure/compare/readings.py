"""Other ways to read a stored weight, one for each mistake that tools are known to make.

Codes in another order, a scale of the whole that divides or multiplies, rows of heads in the order
of llama.cpp, a transposed matrix, an index of groups that is ignored or shuffled: each is a
hypothesis about the same tensors. With an original at hand some rows are decoded under each, and
the one that fits is how the weight is read from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from engine.checkpoint.packed.grid import Grid, regular
from engine.checkpoint.weight import Codes, Loaded, QuantisedWeight

INTERLEAVED = (0, 2, 4, 6, 1, 3, 5, 7)
"""Where AWQ's GEMM puts eight codes of a word."""
IN_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""And what undoes it."""
BACKWARDS = (7, 6, 5, 4, 3, 2, 1, 0)
SWAPPED = (1, 0)
RIGHT = 0.5
"""Relative error up to which a reading needs no other."""
HALVES = 0.5
"""Another is right if it leaves less than this of the error, and less than `RIGHT`."""

Change = Callable[[Loaded], Loaded]


@dataclass(frozen=True, eq=False)
class Ordered:
    """A weight whose rows are those of another, in another order."""

    inner: Loaded
    order: Tensor
    """``[rows]``: which row of the other each is."""

    def rows(self, first: int, last: int) -> Tensor:
        """See `engine.checkpoint.weight.Loaded`."""
        some = self.order[first:last]
        low, high = int(some.min()), int(some.max()) + 1
        return self.inner.rows(low, high)[some - low]

    def codes(self, first: int, last: int) -> Codes:
        """See `engine.checkpoint.weight.Loaded`."""
        return self.inner.codes(first, last)


@dataclass(frozen=True, eq=False)
class Changed:
    """A weight whose rows are changed after they were dequantised."""

    inner: Loaded
    change: Callable[[Tensor], Tensor]

    def rows(self, first: int, last: int) -> Tensor:
        """See `engine.checkpoint.weight.Loaded`."""
        found = self.inner.rows(first, last)
        return self.change(found).to(found.dtype)

    def codes(self, first: int, last: int) -> Codes:
        """See `engine.checkpoint.weight.Loaded`."""
        return self.inner.codes(first, last)


@dataclass(frozen=True, eq=False)
class Turned:
    """A square weight, transposed; held whole."""

    inner: Loaded
    size: int

    def rows(self, first: int, last: int) -> Tensor:
        """See `engine.checkpoint.weight.Loaded`."""
        return self.inner.rows(0, self.size)[:, first:last].T.contiguous()

    def codes(self, first: int, last: int) -> Codes:
        """See `engine.checkpoint.weight.Loaded`."""
        return self.inner.codes(first, last)


def settled(
    stored: QuantisedWeight, rows: Tensor, heads: int, whole: float | None
) -> QuantisedWeight | None:
    """The reading of a weight that fits its original where its own does not; None if none does.

    Args:
        stored: the weight, as its config declares it.
        rows: of the original, its first ones, ``[rows, in]`` float64.
        heads: of its rows, where they are those of queries or keys; else 0.
        whole: the number that scales all of it, if there is one.
    """
    loaded = stored.load()
    own = loaded.rows(0, len(rows)).double()
    plain, up_to_columns = _apart(own, rows), _apart_but_columns(own, rows)
    best: tuple[float, QuantisedWeight] | None = None
    if plain > RIGHT:
        for declared, read_as, change in _of_size(loaded, whole):
            best = _better(best, plain, _apart, (stored, declared, read_as, change), loaded, rows)
    if isinstance(loaded, Grid) and loaded.index is not None:
        for declared, read_as, change in _of_groups(loaded, rows):
            best = _better(best, plain, _apart, (stored, declared, read_as, change), loaded, rows)
    if best is None and up_to_columns > RIGHT:
        for declared, read_as, change in _of_order(stored, loaded, rows, heads):
            given = (stored, declared, read_as, change)
            best = _better(best, up_to_columns, _apart_but_columns, given, loaded, rows)
    return None if best is None else best[1]


def _better(
    best: tuple[float, QuantisedWeight] | None,
    own: float,
    measure: Callable[[Tensor, Tensor], float],
    given: tuple[QuantisedWeight, str, str, Change],
    loaded: Loaded,
    rows: Tensor,
) -> tuple[float, QuantisedWeight] | None:
    """A reading if it fits, and better than the best before."""
    stored, declared, read_as, change = given
    left = measure(change(loaded).rows(0, len(rows)).double(), rows)
    allowed = min(RIGHT, HALVES * own) if best is None else best[0]
    if not left < allowed:
        return best
    load = partial(_changed, stored.load, change)
    return left, replace(stored, load=load, packed=None, declared=declared, read_as=read_as)


def _changed(load: Callable[[], Loaded], change: Change) -> Loaded:
    return change(load())


def _apart(found: Tensor, rows: Tensor) -> float:
    """Relative error; infinite where it is not finite."""
    error = float((found - rows).norm() / rows.norm())
    return error if error == error else float("inf")


def _apart_but_columns(found: Tensor, rows: Tensor) -> float:
    """The same where columns may be scaled, as AWQ does: relative to what was found."""
    power = rows.square().sum(0)
    scale = (found * rows).sum(0) / power.where(power > 0, 1.0)
    norm = found.norm()
    error = float((found - rows * scale).norm() / norm) if float(norm) > 0 else float("inf")
    return error if error == error else float("inf")


def _of_size(loaded: Loaded, whole: float | None) -> Iterator[tuple[str, str, Change]]:
    """A scale of the whole, taken the other way."""
    if whole is None or whole == 1.0:
        return
    for factor, declared, other in (
        (whole**2, "with a scale of the whole that divides", "multiplied by it"),
        (whole**-2, "with a scale of the whole that multiplies", "divided by it"),
    ):
        yield declared, other, partial(_times, factor)


def _times(factor: float, loaded: Loaded) -> Loaded:
    if isinstance(loaded, Grid):
        return loaded.changed(scales=loaded.scales.float() * factor)
    return Changed(loaded, lambda rows: rows.double() * factor)


def _of_order(
    stored: QuantisedWeight, loaded: Loaded, rows: Tensor, heads: int
) -> Iterator[tuple[str, str, Change]]:
    """Codes, rows or groups in another order."""
    if isinstance(loaded, Grid):
        if loaded.levels == 16:
            yield "low half of a byte first", "high half first", partial(_columns, SWAPPED)
            yield "codes in order", "backwards in each word", partial(_columns, BACKWARDS)
            if stored.layout == "awq":
                for order in (INTERLEAVED, IN_ORDER):
                    yield "interleaved as AWQ's GEMM", "another order", partial(_eights, order)
            else:
                for order in (INTERLEAVED, IN_ORDER):
                    yield "codes in order", "interleaved as AWQ's GEMM", partial(_columns, order)
    elif "4" in stored.form and stored.shape[-1] % 2 == 0:
        yield "high half of a byte first", "low half first", partial(_pairs_of_rows)
    out = stored.height
    if heads and out % (2 * heads) == 0:
        places = torch.arange(out).reshape(heads, -1, 2).transpose(1, 2).reshape(out)
        back = torch.arange(out).reshape(heads, 2, -1).transpose(1, 2).reshape(out)
        yield (
            "rows in transformers' order",
            "heads' rows in llama.cpp's order",
            partial(_rows_in, places),
        )
        yield (
            "rows in llama.cpp's order",
            "heads' rows in transformers' order",
            partial(_rows_in, back),
        )
    if stored.shape[-1] == out:
        yield "[out, in]", "[in, out]: transposed", partial(_turned, out)


def _of_groups(loaded: Grid, rows: Tensor) -> Iterator[tuple[str, str, Change]]:
    """Groups other than the index says."""
    yield "grouped by its g_idx", "in order: its g_idx is wrong", _without_index
    if (index := _fitted_index(loaded, rows)) is not None:
        change = partial(_with_index, index)
        yield "grouped by its g_idx", "in other groups: its g_idx is shuffled", change


def _columns(order: tuple[int, ...], loaded: Loaded) -> Loaded:
    """Codes of each row in another order, by so many."""
    assert isinstance(loaded, Grid)
    unpack = loaded.unpack

    def changed(first: int, last: int) -> Tensor:
        codes = unpack(first, last)
        if codes.shape[-1] % len(order):
            return codes
        return _permuted(codes, order)

    return loaded.changed(unpack=changed)


def _eights(order: tuple[int, ...], loaded: Loaded) -> Loaded:
    """Codes and zero points of every eight rows in another order; scales stay."""
    assert isinstance(loaded, Grid)
    unpack, zeros = loaded.unpack, loaded.zeros

    def changed(first: int, last: int) -> Tensor:
        low, high = first // 8 * 8, -(-last // 8) * 8
        codes = _permuted(unpack(low, high).T, order).T
        return codes[first - low : last - low]

    if zeros is not None:
        zeros = _permuted(zeros.T, order).T
    return loaded.changed(unpack=changed, zeros=zeros)


def _permuted(rows: Tensor, order: tuple[int, ...]) -> Tensor:
    """Each run of so many columns in another order."""
    return rows.reshape(len(rows), -1, len(order))[..., list(order)].reshape(rows.shape)


def _pairs_of_rows(loaded: Loaded) -> Loaded:
    return Changed(loaded, lambda rows: _permuted(rows, SWAPPED))


def _without_index(loaded: Loaded) -> Loaded:
    assert isinstance(loaded, Grid)
    assert loaded.index is not None
    inputs, groups = len(loaded.index), loaded.scales.shape[-1]
    return _with_index(torch.arange(inputs) // -(-inputs // groups), loaded)


def _with_index(index: Tensor, loaded: Loaded) -> Loaded:
    assert isinstance(loaded, Grid)
    return loaded.changed(index=regular(index, loaded.scales.shape[-1]))


def _fitted_index(loaded: Grid, rows: Tensor) -> Tensor | None:
    """The group whose scales and zero points fit each column best."""
    if loaded.table is not None or loaded.offsets is not None or loaded.rows_each != 1:
        return None
    codes = loaded.unpack(0, len(rows)).double()
    least: Tensor | None = None
    index = torch.zeros(rows.shape[1], dtype=torch.int64)
    for group in range(loaded.scales.shape[-1]):
        scale = loaded.scales[: len(rows), group, None].double()
        zeros = loaded.zeros
        zero = loaded.middle if zeros is None else zeros[: len(rows), group, None].double()
        error = ((codes - zero) * scale - rows).square().sum(0)
        better = error < (error + 1 if least is None else least)
        index[better] = group
        least = error if least is None else torch.minimum(least, error)
    return index


def _rows_in(order: Tensor, loaded: Loaded) -> Loaded:
    return Ordered(loaded, order)


def _turned(size: int, loaded: Loaded) -> Loaded:
    return Turned(loaded, size)
