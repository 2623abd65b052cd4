"""The crew of a job: its workers, each driven by a thread, and the queue that all take from.

The engine that runs the job takes from the queue too. A piece of work is named by a key, for a
measurement that of its fact. What a lost worker had in hand goes back to the queue, and what came
of it before counts: whatever is announced twice has the same key.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from engine import protocol as p
from engine.workers.worker import Worker, WorkerLostError

WAIT = 0.1
"""Seconds to wait for workers at a time; a more urgent job may run in between."""
GIVEN = 2
"""How many workers may be lost with a piece in hand before the engine does it itself."""
SHARE = 4
"""A worker takes at most this part of what its share of the queue would be, so that all end
together."""
BETWEEN = 0.5
"""Seconds between two events about who does what, at least."""

Command = Callable[[Sequence[str]], p.AnyCommand]
"""Makes the command that does pieces of work."""
Check = Callable[[Sequence[p.AnyEvent]], str]
"""Why a worker cannot take part, from the events of its opening; empty if it can."""


@dataclass(frozen=True)
class News:
    """What a worker has to say to the job."""

    worker: str
    event: p.AnyEvent
    pieces: tuple[str, ...] = ()
    """What it has in hand."""


@dataclass(eq=False)
class _Hand:
    """What one worker does."""

    worker: Worker
    status: str = "starting"
    pieces: list[str] = field(default_factory=list)
    done: int = 0
    begun: float = 0.0
    """When it was ready, as `time.monotonic` counts."""


class Crew:
    """Workers, and what is left to do. All but the threads of workers is the job's own thread."""

    def __init__(self, workers: Sequence[Worker], opening: p.Open, check: Check) -> None:
        """
        Args:
            workers: to be started at once; without any, the job is done by the engine alone.
            opening: opens the checkpoint; each gets its own device.
            check: of its events.
        """
        self._opening, self._check = opening, check
        self._changed = threading.Condition()
        self._news: deque[News] = deque()
        self._queue: deque[str] = deque()
        self._own: deque[str] = deque()
        """Left to the engine."""
        self._lost: dict[str, int] = {}
        """How many workers were lost with a piece in hand."""
        self._open: set[str] = set()
        """Pieces that are not done."""
        self._command: Command | None = None
        self._titles: Mapping[str, str] = {}
        self._at_once, self._by_key = 1, True
        self._closed, self._told = False, 0.0
        self._hands = [_Hand(worker) for worker in workers]
        self._engine = _Hand(_Nobody(), "waiting", begun=time.monotonic())
        self._threads = [
            threading.Thread(target=self._drive, args=(hand,), name=hand.worker.name, daemon=True)
            for hand in self._hands
        ]
        for thread in self._threads:
            thread.start()

    # -- for the job -------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        """Whether there are workers, or may be soon."""
        return any(hand.status != "lost" for hand in self._hands)

    @property
    def starting(self) -> bool:
        """Whether a worker is not ready yet."""
        with self._changed:
            return any(hand.status == "starting" for hand in self._hands)

    @property
    def ready(self) -> int:
        """How many processes can take pieces now, the engine's own among them."""
        with self._changed:
            return 1 + sum(hand.status not in ("starting", "lost") for hand in self._hands)

    @property
    def seconds(self) -> float:
        """Since the workers were started."""
        return time.monotonic() - self._engine.begun

    def wait(self, seconds: float) -> None:
        """Wait until a worker says something, at most so long."""
        with self._changed:
            self._changed.wait(seconds)

    def begin(
        self, pieces: Mapping[str, str], command: Command, *, at_once: int = 1, by_key: bool = True
    ) -> None:
        """Queue pieces of work, the first ones first, in place of all before.

        Args:
            pieces: titles by key.
            command: does some of them.
            at_once: how many are best done together.
            by_key: whether each is done once a fact with its key is learnt; else with the command.
        """
        with self._changed:
            self._queue, self._own = deque(pieces), deque()
            self._open, self._titles, self._command = set(pieces), pieces, command
            self._at_once, self._by_key = at_once, by_key
            self._changed.notify_all()

    def take(self) -> list[str]:
        """Pieces for the engine itself; none if all are done or in other hands."""
        with self._changed:
            found = [self._own.popleft()] if self._own else self._next()
            self._engine.pieces = list(found)
            self._engine.status = "measuring" if found else "waiting"
            return found

    def finish(self, pieces: Sequence[str]) -> None:
        """The engine has done these."""
        with self._changed:
            self._engine.done += len(pieces)
            self._engine.pieces = []
            self._open -= set(pieces)

    @property
    def left(self) -> bool:
        """Whether pieces are not done yet."""
        with self._changed:
            return bool(self._open)

    @property
    def measuring(self) -> int:
        """How many processes measure now, the engine's own among them."""
        with self._changed:
            return 1 + sum(hand.status == "measuring" for hand in self._hands)

    def news(self, seconds: float = 0.0) -> Iterator[News]:
        """What workers said since the last call; waits up to some seconds for the first."""
        with self._changed:
            if seconds and not self._news:
                self._changed.wait_for(lambda: self._news or self._own or self._queue, seconds)
            found = list(self._news)
            self._news.clear()
        return iter(found)

    def told(self, job: str) -> Iterator[p.Workers]:
        """Who does what, the engine first; nothing if it was told a moment before."""
        now = time.monotonic()
        if now - self._told >= BETWEEN:
            self._told = now
            with self._changed:
                yield p.Workers(job, tuple(map(self._state, [self._engine, *self._hands])))

    def close(self) -> None:
        """End all workers."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for hand in self._hands:
            hand.worker.close()
        for thread in self._threads:
            thread.join()

    def _state(self, hand: _Hand) -> p.WorkerState:
        minutes = (time.monotonic() - hand.begun) / 60 if hand.begun else 0.0
        return p.WorkerState(
            name=hand.worker.name,
            device=hand.worker.device,
            status=hand.status,  # type: ignore[arg-type]
            subject=self._titles.get(hand.pieces[0], "") if hand.pieces else "",
            done=hand.done,
            per_minute=hand.done / minutes if hand.done and minutes else float("nan"),
        )

    # -- the queue; all with the lock held ---------------------------------------------------------

    def _next(self) -> list[str]:
        """Pieces to do together: fewer towards the end, so that nobody waits for one."""
        hands = 1 + sum(hand.status != "lost" for hand in self._hands)
        count = max(1, min(self._at_once, len(self._queue) // (SHARE * hands)))
        return [self._queue.popleft() for _ in range(min(count, len(self._queue)))]

    def _give_back(self, pieces: Sequence[str], *, lost: bool) -> None:
        for piece in reversed(pieces):
            if piece not in self._open:
                continue
            self._lost[piece] = self._lost.get(piece, 0) + lost
            alone = not lost or self._lost[piece] >= GIVEN
            (self._own if alone else self._queue).appendleft(piece)

    # -- the thread of a worker --------------------------------------------------------------------

    def _drive(self, hand: _Hand) -> None:
        lost = ""
        try:
            opened: list[p.AnyEvent] = []
            opening = self._opening_on(hand.worker.device)
            for event in hand.worker.run(opening):
                opened.append(event)
            lost = self._check(opened)
            if not lost:
                with self._changed:
                    hand.status, hand.begun = "waiting", time.monotonic()
                    self._changed.notify_all()
                while not lost and (command := self._wait(hand)) is not None:
                    lost = self._run(hand, command)
        except WorkerLostError as error:
            lost = str(error)
        except OSError as error:  # the process could not be started
            lost = str(error)
        except Exception as error:  # noqa: BLE001  (whatever it is, the others can go on)
            lost = f"what it said could not be read: {type(error).__name__}: {error}"
        finally:
            hand.worker.close()
            with self._changed:
                hand.status = "lost"
                self._give_back(hand.pieces, lost=True)
                hand.pieces = []
                if lost and not self._closed:
                    sentence = f"worker {hand.worker.name}: {lost}; the others go on without it"
                    self._news.append(News(hand.worker.name, p.Notice("warning", sentence)))
                self._changed.notify_all()

    def _opening_on(self, device: str) -> p.Open:
        import msgspec

        settings = msgspec.structs.replace(self._opening.settings, device=device)
        return msgspec.structs.replace(self._opening, settings=settings)

    def _wait(self, hand: _Hand) -> p.AnyCommand | None:
        """The next command of a worker; None at the end."""
        with self._changed:
            hand.status = "waiting"
            self._changed.wait_for(lambda: self._queue or self._closed)
            if self._closed:
                return None
            hand.pieces, hand.status = self._next(), "measuring"
            assert self._command is not None
            return self._command(hand.pieces)

    def _run(self, hand: _Hand, command: p.AnyCommand) -> str:
        """Run a command; returns why the worker cannot go on, or nothing."""
        by_key = self._by_key
        for event in hand.worker.run(command):
            with self._changed:
                if isinstance(event, p.Learned) and by_key:
                    strange = [key for key in event.keys if key not in self._titles]
                    if strange:
                        return "its figures depend on something else than the engine's"
                    self._done(hand, event.keys)
                self._news.append(News(hand.worker.name, event, tuple(hand.pieces)))
                self._changed.notify_all()
        failed = not (isinstance(event, p.JobEnded) and event.status == "done")
        with self._changed:
            if failed:
                # The engine does it itself: if it fails there too, the job says why.
                self._give_back(hand.pieces, lost=False)
            elif by_key and hand.pieces:
                return "it has not measured what it was told to"
            else:
                self._done(hand, hand.pieces)
            hand.pieces = []
            self._changed.notify_all()
        return ""

    def _done(self, hand: _Hand, pieces: Sequence[str]) -> None:
        hand.done += len(pieces)
        done = set(pieces)
        self._open -= done
        hand.pieces = [piece for piece in hand.pieces if piece not in done]


class _Nobody:
    """Stands for the engine's own process among the hands."""

    name, device = "engine", ""

    def run(self, command: p.AnyCommand) -> Iterator[p.AnyEvent]:
        """The job's generator does what it takes."""
        yield from ()

    def close(self) -> None:
        """Nothing to end."""
