"""What a session says it saved, while each write in turn fails: run by `test_failing_writes`.

    LD_PRELOAD=failing_writes.so python -m tests.faults.failing_writes FOLDER STEP

prints a JSON object with the number of runs, and what was lost. Where nothing is preloaded, files
may not grow beyond a limit instead: a disk that is full sooner or later.
"""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import resource
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from engine import protocol as p
from engine.errors import EngineError
from engine.store.facts import FactStore
from engine.store.files import write_whole
from engine.store.journal import Journal
from engine.store.recorder import Recorder

EVENTS = 24
RECIPE = b"[layers]\n" * 700


def fact(number: int) -> p.Control:
    return p.Control(f"layer {number} " + "x" * 300, number / 7, 0.0)


def session(folder: Path) -> list[str]:
    """Measure, change and save, going on after every failure; returns what was said to be saved."""
    said: list[str] = []
    try:
        facts = FactStore(folder / "facts.sqlite")
    except EngineError:
        return said
    try:
        journal = Journal(folder, facts)
    except EngineError:
        facts.close()
        return said
    with suppress(EngineError):
        recorder = Recorder(journal, facts, lambda seq, event: None, threading.RLock())
        for number in range(EVENTS):
            with suppress(EngineError):
                recorder.emit(p.Learned((f"key {number}",), (fact(number),)))
                said.append(f"fact {number}")
            with suppress(EngineError):
                recorder.emit(p.RecipeNamed(0, f"change {number}"))
                said.append(f"change {number}")
            if number % 10 == 9:
                with suppress(EngineError):
                    journal.snapshot(recorder.session)
            if number % 6 == 0:
                with suppress(OSError):
                    write_whole(folder / f"{number}.toml", RECIPE)
                    said.append(f"file {number}")
    with suppress(EngineError):
        journal.close()
    with suppress(EngineError):
        facts.close()
    return said


def lost(folder: Path, said: list[str]) -> list[str]:
    """What was said to be saved and is not there."""
    found = set()
    facts = FactStore(folder / "facts.sqlite")
    for key, value in facts.get_many([f"key {number}" for number in range(EVENTS)]).items():
        number = int(key.split()[1])
        if value == fact(number):
            found.add(f"fact {number}")
    journal = Journal(folder, facts, patience=0.0)
    found |= {event.name for _, event in journal.read() if isinstance(event, p.RecipeNamed)}
    found |= {f"file {path.stem}" for path in folder.glob("*.toml") if path.read_bytes() == RECIPE}
    journal.close()
    facts.close()
    return [each for each in said if each not in found]


def ways(folder: Path, step: int) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    """Every way to fail: its name, how it begins, and how it ends."""
    try:
        shim = ctypes.CDLL(None)
        shim.arm(10**9, 0, 0)
    except AttributeError:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        for size in range(0, 120_000, 128 * step):
            limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE)
            yield (
                f"no file beyond {size} bytes",
                partial(limit, (size, before[1])),
                partial(limit, before),
            )
        return
    session(folder)
    writes = shim.writes_seen()
    for error in (errno.ENOSPC, errno.EIO):
        for ever in (0, 1):
            for at in range(1 + (error + ever) % step, writes + 1, step):
                name = f"{errno.errorcode[error]} at write {at} of {writes}"
                begin = partial(shim.arm, at, error, ever)
                yield name + " and ever after" * ever, begin, partial(shim.arm, 0, 0, 0)


def main() -> None:
    """See the module's own words."""
    logging.disable(logging.CRITICAL)
    folder, step = Path(sys.argv[1]) / "failing", int(sys.argv[2])
    folder.mkdir()
    runs, said, wrong = 0, 0, {}
    for name, begin, end in ways(folder, step):
        shutil.rmtree(folder)
        folder.mkdir()
        begin()
        try:
            kept = session(folder)
        finally:
            end()
        runs, said = runs + 1, said + len(kept)
        if missing := lost(folder, kept):
            wrong[name] = missing
    sys.stdout.write(json.dumps({"runs": runs, "said": said, "lost": wrong}))


if __name__ == "__main__":
    main()
