"""A backward pass whose windows an engine and its workers divide among them.

Everything that an estimate is made of is kept by window until the end, so that the sums of some
windows are put beside those of others: nothing is added up in another order, whoever made them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from itertools import pairwise

import msgspec
import numpy as np
import torch
from torch import Tensor

from engine import protocol as p
from engine.errors import UsageError
from engine.formats.grammar import Format, parse_built
from engine.measure.counts import JobCounts
from engine.measure.estimate.backward_pass import BackwardPass, Done
from engine.measure.estimate.first_order import Sums
from engine.measure.evaluation.reference import reference_of
from engine.service.jobs import Steps
from engine.workers.crew import WAIT, Crew
from engine.workspace import Loaded

Windows = tuple[int, int]
"""The first, and the one after the last."""
Make = Callable[[range], BackwardPass]
"""Makes the pass over some micro-batches."""


def divided(batches: int, hands: int) -> list[range]:
    """Micro-batches in as many consecutive parts as there are hands, the longer ones first."""
    size, more = divmod(batches, hands)
    ends = [number * size + min(number, more) for number in range(hands + 1)]
    return [range(a, b) for a, b in pairwise(ends) if a < b]


class SharedPass:
    """One pass over all windows, as `BackwardPass.run` has it."""

    def __init__(self, make: Make, whole: BackwardPass, crew: Crew, hands: int) -> None:
        """
        Args:
            make: a pass for the engine's own part.
            whole: one over all windows, which says what is wanted and is not run.
            crew: takes parts of it.
            hands: in how many parts to divide it.
        """
        self._make, self._whole, self._crew = make, whole, crew
        reference = whole.reference
        rows, count = len(reference.batches[0]), reference.windows.count
        self._parts = {
            f"windows {part.start * rows + 1} to {min(part.stop * rows, count)}": part
            for part in divided(len(reference.batches), hands)
        }
        self._rows, self._count = rows, count
        self._sums: dict[tuple[str, Format], Sums] = {}
        self._seen: dict[tuple[str, Format], set[Windows]] = {}
        self._done: set[tuple[str, Format]] = set()
        self._far = dict.fromkeys(self._parts, 0.0)
        """How far each part is, 0 to 1."""
        self._formats = {str(format): format for _, format in whole.wanted}

    def run(self) -> Generator[p.AnyEvent | Done | None, None, None]:
        """See `BackwardPass.run`; results come once all windows of a layer are there."""
        self._crew.begin({name: name for name in self._parts}, self._command, by_key=False)
        while self._crew.left:
            mine = self._crew.take()
            if not mine:
                yield from self._take_in(WAIT)
                yield None
                continue
            for name in mine:
                for event in self._make(self._parts[name]).run():
                    if isinstance(event, dict):
                        yield self._put_own(event, self._windows(name))
                    elif isinstance(event, p.Progress):
                        yield self._progress(name, event)
                    else:
                        yield event
                    yield from self._take_in()
            self._crew.finish(mine)
        yield from self._take_in()

    def _windows(self, name: str) -> Windows:
        part = self._parts[name]
        return part.start * self._rows, min(part.stop * self._rows, self._count)

    def _command(self, names: Sequence[str]) -> p.SumWindows:
        (name,) = names
        return p.SumWindows(
            direction=self._whole.direction,
            groups=tuple(
                tuple((layer, str(format)) for layer, format in group)
                for group in self._whole.groups
            ),
            windows=self._windows(name),
        )

    def _progress(self, name: str, event: p.Progress) -> p.Progress:
        """The progress of all parts, from that of one."""
        if event.phase != "estimating" or not event.total:
            return event
        self._far[name] = max(self._far[name], event.done / event.total)
        total = self._whole.progress(sum(self._far.values()) / len(self._far))
        return msgspec.structs.replace(total, detail=event.detail)

    def _put_own(self, done: Done, windows: Windows) -> Done:
        found: Done = {}
        for layer, of_layer in done.items():
            for format, sums in of_layer.items():
                self._put(found, layer, format, windows, columns(sums, windows))
        return found

    def _take_in(self, seconds: float = 0.0) -> Iterator[p.AnyEvent | Done]:
        """What workers have summed since the last time."""
        found: Done = {}
        for each in self._crew.news(seconds):
            match each.event:
                case p.WindowSums() as sums:
                    format = self._formats[sums.format]
                    read = map(np.frombuffer, sums.parts, ["<f8"] * len(sums.parts))
                    parts = [torch.from_numpy(part.copy()) for part in read]
                    self._put(found, sums.layer, format, sums.windows, parts)
                case p.Notice():
                    yield each.event
                case p.Progress(phase="estimating") if each.pieces:
                    yield self._progress(each.pieces[0], each.event)
        if found:
            yield found
        yield from self._crew.told(self._whole.job)

    def _put(
        self, found: Done, layer: str, format: Format, windows: Windows, parts: Sequence[Tensor]
    ) -> None:
        """Put the sums of some windows beside the others; ``found`` gets what is complete."""
        at = layer, format
        if at in self._done:
            return
        sums = self._sums.setdefault(at, self._whole.empty(self._count))
        for all_windows, part in zip(tensors(sums), parts, strict=True):
            width = windows[1] - windows[0]
            all_windows[..., slice(*windows)] = part.view(*all_windows.shape[:-1], width)
        seen = self._seen.setdefault(at, set())
        seen.add(windows)
        if len(seen) == len(self._parts):
            self._done.add(at)
            found.setdefault(layer, {})[format] = self._sums.pop(at)


def tensors(sums: Sums) -> tuple[Tensor, ...]:
    """What sums consist of once they are closed; windows are the last dimension of each."""
    return sums.slope, sums.rows, sums.inputs, sums.across


def columns(sums: Sums, windows: Windows) -> list[Tensor]:
    """Those of some windows, closed."""
    return [each[..., slice(*windows)].contiguous() for each in tensors(sums)]


def sum_windows(loaded: Loaded, command: p.SumWindows, job: str) -> Steps:
    """Run a pass over some windows, which an engine has given to this worker.

    Yields:
        `WindowSums` of every change, and `Progress`, also while the reference is run: an engine
        gives up a worker from which it hears nothing.

    Raises:
        UsageError: the windows are not those of whole micro-batches here.
    """
    counts, reference = JobCounts(job=job), reference_of(loaded)
    rows, (first, last) = len(reference.batches[0]), command.windows
    if first % rows or (last % rows and last != reference.windows.count):
        raise UsageError(f"windows {first} to {last} are not whole micro-batches of {rows}")
    groups = [[(name, parse_built(text)) for name, text in group] for group in command.groups]
    formats = list(dict.fromkeys(format for group in groups for _, format in group))
    backward = BackwardPass(
        loaded, formats, command.direction, counts, job, groups,
        batches=range(first // rows, -(-last // rows)),
    )  # fmt: skip
    for event in backward.run():
        if isinstance(event, dict):
            yield from _told(event, command.windows)
        else:
            yield event or backward.progress(0.0)
    return counts.outcome()


def _told(done: Mapping[str, Mapping[Format, Sums]], windows: Windows) -> Iterator[p.WindowSums]:
    for layer, of_layer in done.items():
        for format, sums in of_layer.items():
            parts = tuple(
                each.numpy().astype("<f8", copy=False).tobytes() for each in columns(sums, windows)
            )
            yield p.WindowSums(layer=layer, format=str(format), windows=windows, parts=parts)


def shared_by(loaded: Loaded, crew: Crew, counts: JobCounts, forwards: float) -> Iterator[None]:
    """Wait for workers that are starting, if the estimate takes longer than they do.

    Args:
        loaded: the model.
        crew: of the job.
        counts: knows how long a forward pass takes.
        forwards: that the estimate takes as long as, about.
    """
    if counts.forward * forwards > loaded.load_s:
        while crew.starting and crew.seconds < 2 * loaded.load_s:
            crew.wait(WAIT)
            yield None
