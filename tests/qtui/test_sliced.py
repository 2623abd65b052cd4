"""Work in slices: at once where it is short, a bit at a time where it is long."""

from __future__ import annotations

from collections.abc import Callable, Generator

import pytest

from qtui import sliced
from qtui.sliced import Sliced


class Clock:
    """A clock that steps move, and what is to be called later."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.waiting: list[Callable[[], None]] = []
        monkeypatch.setattr(sliced.time, "perf_counter", lambda: self.now)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        assert seconds == sliced.PAUSE
        self.waiting.append(call)

    def steps(self, count: int, each: float) -> Generator[None, None, int]:
        for _ in range(count):
            self.now += each
            yield
        return count


def test_short_work_is_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, found = Clock(monkeypatch), []
    work: Sliced[int] = Sliced(clock.later)
    work.begin(clock.steps(3, 0.001), found.append)
    assert found == [3]
    assert not work.busy
    assert not clock.waiting


def test_long_work_is_done_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, found = Clock(monkeypatch), []
    work: Sliced[int] = Sliced(clock.later)
    work.begin(clock.steps(30, 0.002), found.append)
    slices = 1
    while clock.waiting:
        assert work.busy
        before = clock.now
        clock.waiting.pop()()
        slices += 1
        assert clock.now - before <= sliced.SLICE + 0.002
    assert found == [30]
    assert slices >= 0.06 / (sliced.SLICE + 0.002)
    assert work.took == pytest.approx(0.06)


def test_other_work_takes_the_place_of_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, found = Clock(monkeypatch), []
    work: Sliced[int] = Sliced(clock.later)
    work.begin(clock.steps(30, 0.002), found.append)
    work.begin(clock.steps(2, 0.001), found.append)
    assert len(clock.waiting) == 1
    clock.waiting.pop()()
    assert found == [2]
    work.begin(clock.steps(30, 0.002), found.append)
    work.stop()
    clock.waiting.pop()()
    assert found == [2]
    assert not work.busy
