"""Statistics of the first windows of a set, and of its second half, in a fixed order of sums.

Sums of floats depend on their order, and what a model says on the size of the micro-batch. So the
windows of a set are divided into parts of one micro-batch each, counted from its first window, and
the statistics of some windows are those of the parts in order, where the first and the last part
may be cut. Figures are then equal to the last digit whichever numbers of samples were asked for
together, before, or in a run that was ended; a number that cuts a part costs that part again.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from torch import Tensor

from engine import protocol as p
from engine.measure.calibrating.course import Course
from engine.measure.calibrating.input_sums import SetStatistics, run_over
from engine.measure.calibrating.windows import SetWindows
from engine.model.network import Network

Events = Generator[p.AnyEvent | None, None, None]
Found = Generator[p.AnyEvent | None, None, SetStatistics]


KEPT_SETS = 8
"""Statistics of so many sets at most are kept for a next command, where memory holds them."""


class Gathering:
    """Statistics of the windows of a set, growing part by part."""

    def __init__(
        self,
        network: Network,
        windows: SetWindows,
        wanted: Sequence[str],
        batch_tokens: int,
        counts: Course,
    ) -> None:
        """
        Args:
            network: resident, at its reference weights.
            windows: of the set.
            wanted: layers, one for each input.
            batch_tokens: of a micro-batch.
            counts: of the job.
        """
        self._network, self._windows, self._wanted = network, windows, tuple(wanted)
        self._counts = counts
        self.rows = max(1, batch_tokens // windows.seq_len)
        """Windows of a part."""
        self._whole: dict[int, SetStatistics] = {}
        """By the first window: of whole parts alone, but for the first."""

    def begin(self, first: int, known: SetStatistics | None = None) -> None:
        """Gather from a window on.

        Args:
            first: number of the window.
            known: statistics of whole parts from there on, to go on with.
        """
        self._whole[first] = known if known is not None else self._empty(first)

    def whole(self, first: int) -> SetStatistics:
        """Statistics of the whole parts from a window on, so far."""
        return self._whole[first]

    def up_to(self, end: int) -> Events:
        """Add all whole parts that end at a window or before it."""
        for stop in range(self.rows, end + 1, self.rows):
            later = [first for first in self._whole if self._end(first) < stop]
            for start in sorted({self._end(first) for first in later}):
                part = yield from self._part(start, stop)
                for first in [each for each in later if self._end(each) == start]:
                    self._whole[first].merge(part)

    def of(self, first: int, end: int) -> Found:
        """Statistics of some windows, whose whole parts were added and nothing after them.

        The same object as `whole` where no part is cut.
        """
        if (start := self._end(first)) == end:
            return self._whole[first]
        part = yield from self._part(start, end)
        part.merge(self._whole[first])  # a sum of two is the same either way round
        return part

    def _end(self, first: int) -> int:
        return first + self._whole[first].samples

    def _part(self, start: int, end: int) -> Found:
        part = self._empty(start)
        windows = self._windows
        ids = windows.ids[start:end]
        said = f"{windows.name} {end} × {windows.seq_len}"
        yield from run_over(
            self._network, self._batches(ids), self._wanted, part.take, self._counts, said
        )
        part.samples = end - start
        self._counts.passed += ids.numel()
        return part

    def _empty(self, start: int) -> SetStatistics:
        return SetStatistics(self._network, self._wanted, self._windows.seed + start)

    def _batches(self, ids: Tensor) -> list[Tensor]:
        starts = range(0, len(ids), self.rows)
        return [ids[at : at + self.rows].to(self._network.device) for at in starts]


class KeptStatistics:
    """Statistics of sets that stay for the next command: a part of the loaded model."""

    def __init__(self) -> None:
        self._of: dict[str, SetStatistics] = {}

    def find(self, lineage: str, most: int) -> SetStatistics | None:
        """What was gathered of a set, if it is not more than so many windows."""
        found = self._of.get(lineage)
        return found if found is not None and found.samples <= most else None

    def keep(self, lineage: str, statistics: SetStatistics, count: int) -> None:
        """Keep statistics, and of all the newest ``count``."""
        self._of.pop(lineage, None)
        self._of[lineage] = statistics
        while len(self._of) > count:
            self._of.pop(next(iter(self._of)))
