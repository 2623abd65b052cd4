"""``qtui bench``."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Annotated

import typer

from engine.errors import UsageError
from engine.report import tables
from engine.report.bench_parts import bench_document
from engine.runtimes.declared import RUNTIMES
from engine.runtimes.results import Bench
from engine.runtimes.running import Ask
from engine.runtimes.running import bench as timed
from qtui.cli.exit import check_destination, publish, reporting_errors, terminated_as_interrupted
from qtui.cli.options import JsonOption
from qtui.cli.progress import Meter


def bench(
    artefact: Annotated[
        str,
        typer.Argument(
            metavar="ARTEFACT",
            help="a finished checkpoint: a folder, a .gguf file, or demo",
            show_default=False,
        ),
    ],
    runtime: Annotated[
        str | None,
        typer.Option(
            "--runtime",
            metavar="|".join(each.name for each in RUNTIMES),
            help="what runs it (default: transformers for a folder, llama.cpp for a .gguf)",
        ),
    ] = None,
    batch: Annotated[
        str, typer.Option("--batch", metavar="1,4", help="sequences at once, each size in turn")
    ] = "1",
    prompt: Annotated[
        int, typer.Option("--prompt", metavar="N", help="tokens of each prompt")
    ] = 512,
    new: Annotated[
        int, typer.Option("--new", metavar="N", help="tokens to generate after it")
    ] = 128,
    repeats: Annotated[int, typer.Option("--repeats", metavar="N", help="runs that count")] = 5,
    warmup: Annotated[
        int, typer.Option("--warmup", metavar="N", help="runs before those that count")
    ] = 1,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            metavar="N",
            help="threads of the processor (default: OMP_NUM_THREADS, else its physical cores)",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="auto|cpu|cuda:N", help="device to run on")
    ] = "auto",
    python: Annotated[
        str | None,
        typer.Option(
            "--python",
            metavar="PATH",
            help="the Python, or the folder, of another environment that has the runtime",
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="run code that comes with the checkpoint"),
    ] = False,
    json: JsonOption = None,
) -> None:
    """Speed, latency and memory of a finished checkpoint in a real runtime.

    Times the finished file as it is stored, in transformers, llama.cpp or vLLM, in a process of its
    own: tokens per second of prompt and of generation, the time between two tokens, peak memory.
    Nothing here comes from a simulation.
    """
    with reporting_errors(kept="nothing was kept"), terminated_as_interrupted():
        check_destination(json)
        asked = Ask(
            artefact=artefact, runtime=runtime, batches=batch_sizes(batch), prompt=prompt, new=new,
            repeats=repeats, warmup=warmup, threads=threads, device=device, python=python,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
        publish(bench_document(_with_progress(asked)), tables.bench_text, json)


def batch_sizes(given: str) -> tuple[int, ...]:
    """``1,4`` as numbers.

    Raises:
        UsageError: one of them is none.
    """
    words = [word.strip() for word in given.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise UsageError(f"--batch is {given!r}, expected numbers separated by commas, such as 1,4")
    return tuple(map(int, words))


def _with_progress(asked: Ask) -> Bench:
    meter = Meter(sys.stderr)
    try:
        with closing(timed(asked)) as steps:
            while True:
                try:
                    progress = next(steps)
                except StopIteration as end:
                    found: Bench = end.value
                    return found
                meter.show("bench", progress.done, progress.total, detail=progress.subject)
    finally:
        meter.clear()
