"""The process that runs the runtime: it times it and says so, one line of JSON at a time.

It may be the Python of another environment, so nothing but the standard library is imported here
and in the drivers, besides the runtime itself. `engine.runtimes.running` starts it, with the
request on its standard input and the number of the pipe to answer to as its argument.

A driver is a module with ``load(request) -> Runner``; a program's driver has ``runs`` instead.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, NamedTuple, Protocol

from engine.runtimes.memory import forget_peak, peak_bytes

Request = dict[str, Any]


class Run(NamedTuple):
    """One prompt for each sequence of a batch, and what was generated after it."""

    prompt_s: float
    """Seconds for the prompts."""
    steps_s: list[float]
    """Seconds of every step of generation, each one token for every sequence."""
    generated: int
    """Tokens made in these steps, of all sequences together."""


class Runner(Protocol):
    """A checkpoint that a runtime has loaded."""

    about: dict[str, str]
    """``version``, ``device``, ``threads``, and further settings that figures depend on."""
    vocabulary: int
    """Number of tokens."""

    def prepare(self, batch: int, prompt: int, new: int) -> None:
        """Allocate what a batch of this size needs."""

    def run(self, prompts: list[list[int]], new: int) -> Run:
        """Run the prompts, then generate ``new`` tokens for each."""

    def device_bytes(self) -> int | None:
        """The most memory of a device used since `prepare`; None if that is not known."""


def present(form: dict[str, Any]) -> bool:
    """Whether a runtime is here in this form."""
    if form["program"]:
        return shutil.which(form["name"]) is not None
    return importlib.util.find_spec(form["name"]) is not None


def version_of(package: str) -> str:
    """The installed version of the package that has this module."""
    for name in metadata.packages_distributions().get(package, [package]):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return package


def random_prompts(batch: int, length: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Random tokens, as llama-bench takes them: how long a step takes does not depend on them."""
    draw = random.Random(seed)
    return [[draw.randrange(vocabulary) for _ in range(length)] for _ in range(batch)]


def timed_batches(runner: Runner, request: Request) -> Iterator[dict[str, Any]]:
    """Every batch size in turn: runs that are not counted, then those that are."""
    rounds = request["warmup"] + request["repeats"]
    total = rounds * len(request["batches"])
    for place, batch in enumerate(request["batches"]):
        forget_peak()
        runner.prepare(batch, request["prompt"], request["new"])
        runs = []
        for at in range(rounds):
            yield {
                "kind": "progress",
                "done": place * rounds + at,
                "total": total,
                "subject": f"batch {batch}" + ("" if at >= request["warmup"] else ", warm-up"),
            }
            prompts = random_prompts(batch, request["prompt"], runner.vocabulary, at)
            runs.append(runner.run(prompts, request["new"])._asdict())
        yield {
            "kind": "batch",
            "batch": batch,
            "runs": runs[request["warmup"] :],
            "peak_bytes": peak_bytes(),
            "device_bytes": runner.device_bytes(),
        }


def answers(request: Request) -> Iterator[dict[str, Any]]:
    """Everything this process has to say."""
    form = next(filter(present, request["forms"]), None)
    if form is None:
        yield {"kind": "missing"}
        return
    driver = importlib.import_module(f"engine.runtimes.drivers.{form['driver']}")
    if form["program"]:
        yield from driver.runs(request)
        return
    yield {"kind": "progress", "done": 0, "total": 0, "subject": f"loading with {form['name']}"}
    began = time.perf_counter()
    runner: Runner = driver.load(request)
    about = {"version": version_of(form["name"]), **runner.about}
    yield {"kind": "loaded", "seconds": time.perf_counter() - began, "about": about}
    yield from timed_batches(runner, request)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of a device."""
    said = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(words in said for words in ("out of memory", "can't allocate memory"))
    )


def failed(error: Exception) -> dict[str, Any]:
    """An error as the parent is told."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    why = lines[0] if lines else type(error).__name__
    lacks = isinstance(error, ImportError)
    kind = "memory" if out_of_memory(error) else "import" if lacks else "other"
    return {"kind": "failed", "why": why, "of": kind, "type": type(error).__name__}


def end_with_parent() -> None:
    """End, with all that was started, once standard input is closed: whoever asked is gone.

    A terminal that hangs up, or memory that runs out, gives a parent no time to end this process.
    """

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def main(answer: Callable[[dict[str, Any]], None]) -> None:
    """Read the request, and answer until all is said or something fails."""
    request: Request = json.loads(sys.stdin.readline())
    end_with_parent()
    try:
        for each in answers(request):
            answer(each)
        answer({"kind": "done"})
    except Exception as error:  # noqa: BLE001 - any failure of a runtime is told to the parent
        answer(failed(error))


if __name__ == "__main__":
    pipe = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8")

    def write(message: dict[str, Any]) -> None:
        pipe.write(json.dumps(message) + "\n")
        pipe.flush()

    main(write)
