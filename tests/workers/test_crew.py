"""The queue of a crew: every piece is done, and twice only what was in a lost worker's hand."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest

from engine import protocol as p
from engine.workers.crew import Crew
from engine.workers.worker import WorkerLostError

FACT = p.Baseline(1.0, 0.1, 2.7, 8)
OPENING = p.Open("demo", p.Settings())


class Acted:
    """A worker that plays a part: it learns what it is told to, until its part has it do else."""

    device = "cpu"

    def __init__(self, name: str, part: Callable[[str], str] = lambda piece: "") -> None:
        self.name, self._part = name, part
        self.measured: list[str] = []
        self.taken: list[int] = []
        self.closed = threading.Event()

    def run(self, command: p.AnyCommand) -> Iterator[p.AnyEvent]:
        if not isinstance(command, p.MeasureUnits):
            return
        self.taken.append(len(command.units))
        for piece in command.units:
            match self._part(piece):
                case "die":
                    raise WorkerLostError("it was ended by SIGKILL")
                case "fail":
                    yield p.JobEnded(job="units-1", kind="units", status="failed", message="no")
                    return
                case "mistake":
                    yield p.Learned(("another key",), (FACT,))
            self.measured.append(piece)
            yield p.Learned((piece,), (FACT,))
        yield p.JobEnded(job="units-1", kind="units", status="done")

    def close(self) -> None:
        self.closed.set()


def command(pieces: Sequence[str]) -> p.MeasureUnits:
    return p.MeasureUnits(
        format="int8", direction="degrade", by="layer", units=tuple(pieces), nll=1.0
    )


Done = tuple[Counter[str], list[str], list[str]]


def carried_out(
    workers: Sequence[Acted], pieces: Sequence[str], *, own: bool = True, at_once: int = 4
) -> Done:
    """What was learnt of workers, what the engine did itself, and the warnings.

    Args:
        own: whether the engine takes pieces while there are workers.
    """
    crew = Crew(workers, OPENING, lambda events: "")
    learnt: Counter[str] = Counter()
    mine: list[str] = []
    said: list[str] = []

    def take_in(seconds: float = 0.0) -> None:
        for news in crew.news(seconds):
            if isinstance(news.event, p.Learned):
                learnt.update(news.event.keys)
            if isinstance(news.event, p.Notice):
                said.append(news.event.message)

    try:
        crew.begin({piece: piece for piece in pieces}, command, at_once=at_once)
        while crew.left:
            found = [] if crew and not own and not crew._own else crew.take()
            mine += found
            crew.finish(found)
            take_in(0.0 if found else 0.05)
        take_in()
    finally:
        crew.close()
    return learnt, mine, said


PIECES = [f"layer {n}" for n in range(40)]


def test_all_is_done_by_workers_if_the_engine_does_nothing() -> None:
    workers = [Acted("1"), Acted("2")]
    learnt, mine, said = carried_out(workers, PIECES, own=False)
    assert (learnt, mine, said) == (Counter(PIECES), [], [])
    assert all(worker.closed.is_set() for worker in workers)


@pytest.mark.parametrize("seed", range(10))
def test_twice_is_measured_only_what_a_lost_worker_had_in_hand(seed: int) -> None:
    chance = random.Random(seed)
    held: list[str] = []

    def part(piece: str) -> str:
        if chance.random() < 0.05:
            held.append(piece)
            return "die"
        return ""

    workers = [Acted(str(n), part) for n in range(4)]
    learnt, mine, said = carried_out(workers, PIECES)
    assert set(learnt) | set(mine) == set(PIECES)
    assert learnt.total() + len(mine) == len(PIECES)
    assert len(said) == len(held)
    assert all("SIGKILL; the others go on without it" in each for each in said)


def test_a_piece_that_ends_two_workers_is_left_to_the_engine() -> None:
    workers = [Acted(str(n), lambda piece: "die" if piece == "layer 7" else "") for n in range(4)]
    learnt, mine, said = carried_out(workers, PIECES, own=False)
    assert mine == ["layer 7"]
    assert len(said) == 2
    assert learnt == Counter(piece for piece in PIECES if piece != "layer 7")


def test_what_fails_at_a_worker_is_left_to_the_engine_which_can_say_why() -> None:
    workers = [Acted("1", lambda piece: "fail" if piece == "layer 7" else "")]
    learnt, mine, said = carried_out(workers, PIECES, own=False, at_once=1)
    assert mine == ["layer 7"]
    assert not said
    assert learnt.total() == len(PIECES) - 1


def test_figures_with_other_keys_are_refused() -> None:
    learnt, mine, said = carried_out([Acted("1", lambda piece: "mistake")], PIECES, own=False)
    assert not learnt
    assert set(mine) == set(PIECES)
    assert said == [
        "worker 1: its figures depend on something else than the engine's; the others go on "
        "without it"
    ]


def test_a_worker_that_cannot_take_part_is_named_and_given_nothing() -> None:
    worker = Acted("1 on cuda:0")
    crew = Crew([worker], OPENING, lambda events: "it has torch 1.0 instead of 2.13")
    try:
        crew.begin({"layer 0": "layer 0"}, command)
        assert worker.closed.wait(60)
        while crew:
            next(crew.news(0.05), None)
        assert crew.take() == ["layer 0"]
    finally:
        crew.close()
    assert not worker.taken


def test_a_worker_whose_answer_cannot_be_read_is_named() -> None:
    def broken(events: Sequence[p.AnyEvent]) -> str:
        raise KeyError("protocol")

    crew = Crew([Acted("1")], OPENING, broken)
    try:
        while crew:
            crew.wait(0.05)
        (news,) = crew.news()
    finally:
        crew.close()
    assert isinstance(news.event, p.Notice)
    assert "worker 1: what it said could not be read: KeyError: 'protocol'" in news.event.message


def test_fewer_are_taken_together_towards_the_end() -> None:
    worker = Acted("1")
    carried_out([worker], PIECES, own=False, at_once=16)
    assert worker.taken[0] == len(PIECES) // 8
    assert worker.taken == sorted(worker.taken, reverse=True)
    assert worker.taken[-1] == 1
