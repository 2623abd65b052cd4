"""The facts of layers that a triage wants: read ahead, from one compiled pass where it serves.

Torch is imported for the first layer that the pass does not serve.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import msgspec

from engine import protocol as p
from engine.checkpoint import (
    DequantisedRows,
    DiskLayer,
    dequantised_rows,
    read_layer,
    stored_rows,
)
from engine.formats.grammar import Format
from engine.formats.storage import why_not_held
from engine.measure.counts import JobCounts
from engine.measure.weights.belonging import heads_of, profile_of
from engine.measure.weights.fused import Pass, Rows, RowsInMemory, is_fused, kernels
from engine.measure.weights.passes import Passes, Running, cores
from engine.measure.weights.sums import Array
from engine.service.process import is_own_process
from engine.store import keys
from engine.workspace import Loaded, Opened

if TYPE_CHECKING:
    from torch import Tensor

Known = dict[str, p.AnyFact]


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
    def identity(self) -> tuple[object, ...]:
        """What its weight is, on disk: a tied head is the embedding."""
        return self.row.parts, self.row.shape, self.row.transposed, self.row.reader

    @property
    def addresses(self) -> tuple[str, ...]:
        """All keys, in the order in which their facts are announced."""
        return self.statistics, *self.errors.values()


class Measuring:
    """Measures layers in a given order, and begins the next ones while one is measured.

    Args:
        opened: the checkpoint.
        todo: the layers, with the facts that are known of each.
        counts: receives the seconds spent reading.
    """

    def __init__(
        self, opened: Opened, todo: Sequence[tuple[Wanted, Known]], counts: JobCounts
    ) -> None:
        self._opened, self._counts = opened, counts
        self._passes = Passes(_threads(opened))
        self._heads = heads_of(opened.checkpoint.config)
        self.notes: list[str] = []
        """Sentences about what was measured in another way."""
        self._next = iter(todo)
        self._begun: dict[str, Running] = {}
        """Passes by name of the layer."""
        seen = Counter(wanted.identity for wanted, _ in todo)
        self._shared: dict[tuple[object, ...], Running] = {}
        """Passes over weights that several layers have."""
        self._twins = {identity for identity, count in seen.items() if count > 1}

    def close(self) -> None:
        """End the threads."""
        self._passes.close()

    def facts(self, wanted: Wanted, known: Known) -> Generator[None, None, Known]:
        """All facts of a layer; those that are known are not measured again.

        Yields None while it waits for a thread.

        Raises:
            CheckpointError: a tensor cannot be read.
        """
        found = dict(known)
        _refuse(wanted, found)
        self._passes.fill(self._begin_next)
        running = self._begun.pop(wanted.row.name, None)
        if running is not None:
            yield from self._passed(running, wanted, found)
        if len(found) < len(wanted.addresses):
            yield from self._step_by_step(wanted, found)
        rows = running.work.rows if running is not None else None
        held = rows if isinstance(rows, DequantisedRows) else None
        if wanted.statistics not in known:
            self._add_codes(wanted, found, held)
        if held is not None:
            held.release()
        return found

    def _add_codes(self, wanted: Wanted, found: Known, held: DequantisedRows | None) -> None:
        """Add what the codes of a layer that is stored quantised look like.

        Args:
            held: its pieces, if they are in memory.
        """
        from engine.measure.weights.stored import stored_codes

        fact = found[wanted.statistics]
        assert isinstance(fact, p.LayerWeights)
        codes = stored_codes(self._opened.checkpoint, wanted.row, held)
        if codes is None:
            return
        found[wanted.statistics] = msgspec.structs.replace(fact, codes=codes)

    def _rows(self, row: DiskLayer) -> Rows | None:
        """The rows of a layer on disk, if they can be read a few at a time."""
        checkpoint = self._opened.checkpoint
        return stored_rows(checkpoint, row) or dequantised_rows(checkpoint, row)

    def _begin_next(self) -> bool:
        """Begin the pass over the next layer that has one; whether there was any layer left."""
        for wanted, known in self._next:
            rows = self._rows(wanted.row)
            if rows is not None and (work := self._pass(rows, wanted, known)) is not None:
                self._begin(work, wanted)
            return True
        return False

    def _begin(self, work: Pass, wanted: Wanted) -> None:
        shared = self._shared.get(wanted.identity)
        if shared is None or shared.work.formats != work.formats:
            shared = self._passes.begin(work, self._opened.settings.sigma)
        if wanted.identity in self._twins:
            self._shared[wanted.identity] = shared
        self._begun[wanted.row.name] = shared

    def _pass(self, rows: Rows, wanted: Wanted, known: Known) -> Pass | None:
        """What one pass finds of a layer; None if that is nothing, or nothing can be compiled."""
        found = kernels()
        if not isinstance(found, ModuleType):
            return None
        formats = tuple(
            format
            for format, key in wanted.errors.items()
            if key not in known and is_fused(format) and not why_not_held(format, wanted.row.shape)
        )
        if not formats and wanted.statistics in known:
            return None
        return Pass(rows, formats, self._opened.scale_dtype == "bfloat16", found)

    def _passed(
        self, running: Running, wanted: Wanted, found: Known
    ) -> Generator[None, None, None]:
        """Add what a pass found; not the errors in formats whose scales overflow."""
        layer = wanted.row.name
        sums, beyond = yield from running.result()
        spent = self._counts.timings
        spent["read_s"] = spent.get("read_s", 0.0) + sums.read_s
        if wanted.statistics not in found:
            sigma = self._opened.settings.sigma
            found[wanted.statistics] = self._with_profile(
                sums.weights(layer, sigma, beyond), wanted, sums.energies, sums.column_energies
            )
        for place, format in enumerate(running.work.formats):
            if not sums.overflows(place):
                error = sums.errors_in(place).fact
                found[wanted.errors[format]] = p.LayerError(layer, str(format), error)

    def _with_profile(
        self, fact: p.LayerWeights, wanted: Wanted, rows: Array, columns: Array
    ) -> p.LayerWeights:
        """The statistics, with sketches of the norms of a layer within a block."""
        row = wanted.row
        if row.block is None or not len(rows):
            return fact
        experts = row.shape[0] if len(row.shape) > 2 else 1
        found = profile_of(row.kind, experts, rows, columns, self._heads)
        return msgspec.structs.replace(fact, rows=found.rows, columns=found.columns)

    def _step_by_step(self, wanted: Wanted, found: Known) -> Generator[None, None, None]:
        """Add what no pass over the files found, from the whole weight."""
        row, opened = wanted.row, self._opened
        weight = self._counts.timed("read_s", lambda: read_layer(opened.checkpoint, row))()
        if (rows := _in_memory(weight)) is not None and self._rows(row) is None:
            work = self._pass(rows, wanted, found)
            if work is not None:
                running = self._passes.begin(work, opened.settings.sigma)
                yield from self._passed(running, wanted, found)
        if len(found) == len(wanted.addresses):
            return
        from engine.measure.weights.plain import energies, plain_error, plain_statistics

        with _leaving_room(opened):
            if wanted.statistics not in found:
                sigma = opened.settings.sigma
                fact = plain_statistics(weight, row.name, sigma)
                found[wanted.statistics] = self._with_profile(fact, wanted, *energies(weight))
            self._on_device(weight, wanted, found)
            for format, key in wanted.errors.items():
                if key not in found:
                    found[key] = plain_error(weight, format, opened.scale_dtype, row.name)

    def _on_device(self, weight: Tensor, wanted: Wanted, found: Known) -> None:
        """Add the errors that are still missing, if there is a GPU with room for the weight."""
        import torch

        formats = [format for format, key in wanted.errors.items() if key not in found]
        device = gpu(self._opened.settings.device)
        if not device or not formats:
            return
        from engine.measure.weights.on_device import device_errors

        layer, scale_dtype = wanted.row.name, self._opened.scale_dtype
        try:
            facts = device_errors(weight, formats, scale_dtype, layer, device)
            for format, fact in zip(formats, facts, strict=True):
                found[wanted.errors[format]] = fact
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            self.notes.append(f"{layer} does not fit on {device}: measured on the CPU")


def _refuse(wanted: Wanted, found: Known) -> None:
    """Add the formats that cannot hold the layer's shape."""
    row = wanted.row
    for format, key in wanted.errors.items():
        if key not in found and (why := why_not_held(format, row.shape)) is not None:
            found[key] = p.LayerError(row.name, str(format), refused=why)


def _in_memory(weight: Tensor) -> RowsInMemory | None:
    """The rows of a weight; None if the pass does not know its dtype."""
    import torch

    dtype = str(weight.dtype).removeprefix("torch.")
    if dtype not in ("float16", "bfloat16", "float32") or not weight.numel():
        return None
    width = weight.shape[-1]
    bits = weight.detach().contiguous().view(torch.uint8).reshape(-1, width * weight.itemsize)
    return RowsInMemory(dtype, width, bits.numpy())


def gpu(asked: str) -> str:
    """The GPU that weights are quantised on, of the device in the settings; empty if none."""
    import torch

    if asked == "cpu" or not torch.cuda.is_available():
        return ""
    return "cuda" if asked == "auto" else asked


def _threads(opened: Opened) -> int:
    """One for each core; one less while the model library is imported on another thread."""
    return max(1, cores() - 1) if _is_loading(opened) else cores()


def _is_loading(opened: Opened) -> bool:
    return is_own_process() and opened.loads_model and not opened.workspace.every(Loaded)


@contextmanager
def _leaving_room(opened: Opened) -> Iterator[None]:
    """Use one of torch's threads less while the model library is imported."""
    import torch

    threads = torch.get_num_threads()
    if _is_loading(opened) and threads > 1:
        torch.set_num_threads(threads - 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
