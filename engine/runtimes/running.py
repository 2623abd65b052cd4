"""Time a finished checkpoint in a runtime, which works in a process of its own.

Peak memory is that process's, and what makes the runtime crash ends it alone. It leads a session of
its own, so that processes of the runtime's own end with it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import psutil

from engine.errors import EngineError, OutOfMemoryError, UsageError
from engine.runtimes.artefact import Artefact, find_artefact
from engine.runtimes.declared import RUNTIMES, Runtime, runtime_named, usual
from engine.runtimes.results import (
    Answer,
    Bench,
    Done,
    Failed,
    Missing,
    Progress,
    Started,
    TimedBatch,
)

ENGINE = Path(__file__).resolve().parents[1]
BOOT = """
import sys
if sys.path[0] == "":
    del sys.path[0]
import importlib.machinery, runpy, types
engine = types.ModuleType("engine")
engine.__path__ = [sys.argv.pop(1)]
engine.__spec__ = importlib.machinery.ModuleSpec("engine", None, is_package=True)
sys.modules["engine"] = engine
runpy.run_module("engine.runtimes.child", run_name="__main__")
"""
"""Finds qtui's part of the process without adding anything else to what Python finds: the packages
of an environment stay its own. With ``-c``, Python would import from the folder it is started in,
which may be the checkpoint's; the option ``-P`` is not known before Python 3.11."""
MOST_BATCH = 1024
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
ALIVE_S = 1.0
"""How often it is looked whether a process that says nothing is still there."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What is timed, and how."""

    artefact: str
    """A folder, a GGUF file, or ``demo``."""
    runtime: str | None = None
    """One of `RUNTIMES`; None for the usual one of what the artefact is."""
    batches: tuple[int, ...] = (1,)
    """Sequences at once."""
    prompt: int = 512
    """Tokens of each prompt."""
    new: int = 128
    """Tokens to generate after it."""
    repeats: int = 5
    warmup: int = 1
    """Runs before those that count."""
    threads: int | None = None
    """None: ``OMP_NUM_THREADS``, else the physical cores that this process may use."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    python: str | None = None
    """The interpreter of an environment that has the runtime; None for this one."""
    trust_remote_code: bool = False


def bench(ask: Ask) -> Generator[Progress, None, Bench]:
    """Time a finished checkpoint; closing the generator ends the runtime.

    Raises:
        UsageError: a number is out of range, the runtime does not run such a checkpoint, or is not
            installed; the message says how to install it.
        CheckpointError: there is no finished checkpoint at the path.
        OutOfMemoryError: memory ran out, of the machine or of a device.
        EngineError: the runtime failed or crashed.
    """
    _check(ask)
    artefact = find_artefact(ask.artefact)
    runtime = _runtime_for(ask, artefact)
    _check_device(ask.device, runtime)
    python = _interpreter(ask.python)
    request = {
        "path": str(artefact.path),
        "forms": [form._asdict() for form in runtime.forms],
        "batches": sorted(set(ask.batches)),
        "prompt": ask.prompt,
        "new": ask.new,
        "repeats": ask.repeats,
        "warmup": ask.warmup,
        "threads": ask.threads or default_threads(),
        "device": ask.device,
        "trust_remote_code": ask.trust_remote_code,
        "repack": True,
    }
    notes: list[str] = []
    try:
        started, batches = yield from _answers(runtime, python, request)
    except _Crashed as crash:
        if runtime.name != "llama.cpp":
            raise
        # Its kernels for AMX crash on some processors: only its extra buffer types use them.
        notes.append(f"{crash}; timed again without its extra buffer types")
        started, batches = yield from _answers(runtime, python, {**request, "repack": False})
    return Bench(
        artefact=str(artefact.path),
        bytes=artefact.bytes,
        runtime=runtime.name,
        about=started.about,
        python=python,
        processor=processor_name(),
        load_s=started.seconds,
        prompt=ask.prompt,
        new=ask.new,
        warmup=ask.warmup,
        repeats=ask.repeats,
        batches=tuple(batches),
        notes=tuple(notes),
    )


def default_threads() -> int:
    """``OMP_NUM_THREADS``, else the physical cores, of those that this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isascii() and given.isdecimal() and int(given) > 0:
        return int(given)
    process = psutil.Process()
    usable = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else None
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return max(1, min(cores, usable or cores))


def processor_name() -> str:
    """The processor, as the system names it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


class _Crashed(EngineError):
    """The process ended by a signal."""


def _check(ask: Ask) -> None:
    for option, value, least in (
        ("--prompt", ask.prompt, 1),
        ("--new", ask.new, 1),
        ("--repeats", ask.repeats, 1),
        ("--warmup", ask.warmup, 0),
        ("--threads", 1 if ask.threads is None else ask.threads, 1),
    ):
        if value < least:
            raise UsageError(f"{option} is {value}, expected at least {least}")
    for batch in ask.batches or (0,):
        if not 1 <= batch <= MOST_BATCH:
            raise UsageError(f"--batch has {batch}, expected 1 to {MOST_BATCH}")


def _runtime_for(ask: Ask, artefact: Artefact) -> Runtime:
    if ask.runtime is None:
        return usual(artefact.kind)
    runtime = runtime_named(ask.runtime)
    if runtime is None:
        names = ", ".join(each.name for each in RUNTIMES)
        raise UsageError(f"--runtime is {ask.runtime!r}, expected {names}")
    if runtime.reads != artefact.kind:
        is_a = "a GGUF file" if artefact.kind == "gguf" else "a folder of the Hugging Face layout"
        raise UsageError(f"{artefact.path} is {is_a}: {runtime.instead}")
    return runtime


def _check_device(device: str, runtime: Runtime) -> None:
    """Refuse a device that the runtime would not take, and run on another one."""
    if DEVICE.fullmatch(device) is None:
        raise UsageError(f"--device is {device!r}, expected auto, cpu, cuda or cuda:N")
    if runtime.name == "llama.cpp" and ":" in device:
        raise UsageError(
            f"--device {device}: llama.cpp uses every GPU that it sees: set CUDA_VISIBLE_DEVICES"
        )
    if runtime.name == "vllm" and device == "cpu":
        raise UsageError("--device cpu: vLLM runs where it was built for: leave --device out")


def _interpreter(given: str | None) -> str:
    if given is None:
        return sys.executable
    path = Path(os.path.expanduser(given)).absolute()
    if path.is_dir():
        path = path / "bin" / "python"
    found = shutil.which(str(path)) or shutil.which(given)
    if found is None:
        raise UsageError(
            f"--python {given} is no interpreter: expected the Python of an environment"
        )
    return found


def _answers(
    runtime: Runtime, python: str, request: dict[str, Any]
) -> Generator[Progress, None, tuple[Started, list[TimedBatch]]]:
    """What the process says, until it is done."""
    started: Started | None = None
    batches: list[TimedBatch] = []
    subject = "starting"
    with tempfile.TemporaryFile() as said, _process(python, request, said) as (process, lines):
        for line in _lines(process, lines):
            match msgspec.json.decode(line, type=Answer):
                case Progress() as progress:
                    subject = progress.subject
                    yield progress
                case Started() as started:
                    pass
                case TimedBatch() as batch:
                    batches.append(batch)
                case Missing():
                    raise UsageError(_not_installed(runtime, python))
                case Failed() as failed:
                    raise _failure(runtime, failed)
                case Done():
                    assert started is not None
                    return started, batches
        raise _ended(runtime, process.wait(), subject, said)


@contextlib.contextmanager
def _process(
    python: str, request: dict[str, Any], said: IO[bytes]
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """The process, and the pipe it answers to; it is ended on every exit."""
    reading, writing = os.pipe()
    answers = os.fdopen(reading, "rb", buffering=0)
    try:
        process = subprocess.Popen(
            [python, "-c", BOOT, str(ENGINE), str(writing)],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            pass_fds=(writing,),
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": str(request["threads"])},
        )
    except OSError as error:
        answers.close()
        raise EngineError(f"{python} cannot be started: {error}") from error
    finally:
        os.close(writing)
    try:
        with contextlib.suppress(BrokenPipeError):
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(request) + b"\n")
            process.stdin.flush()  # it stays open: the process ends itself where it is closed
        yield process, answers
    finally:
        answers.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with contextlib.suppress(BrokenPipeError):
            assert process.stdin is not None
            process.stdin.close()


def _lines(process: subprocess.Popen[bytes], answers: IO[bytes]) -> Iterator[bytes]:
    """Whole lines, until the process ends: what it started may hold the pipe open for longer."""
    begun = b""
    with selectors.DefaultSelector() as waiting:
        waiting.register(answers, selectors.EVENT_READ)
        while True:
            ended = process.poll() is not None
            if waiting.select(0 if ended else ALIVE_S):
                data = answers.read(1 << 16)
                if not data:
                    return
                *whole, begun = (begun + data).split(b"\n")
                yield from whole
            elif ended:
                return


def _not_installed(runtime: Runtime, python: str) -> str:
    ways = ", or ".join(form.install for form in runtime.forms)
    return (
        f"{runtime.name} is not installed for {python}: {ways}; "
        f"--python PATH names the Python of another environment"
    )


def _failure(runtime: Runtime, failed: Failed) -> EngineError:
    if failed.of == "memory":
        return OutOfMemoryError(
            f"{runtime.name} ran out of memory ({failed.why}): lower --batch, --prompt or --new"
        )
    if failed.of == "import":
        return UsageError(f"{runtime.name} lacks a package for this checkpoint: {failed.why}")
    return EngineError(f"{runtime.name} failed with {failed.type}: {failed.why}")


def _ended(runtime: Runtime, status: int, subject: str, said: IO[bytes]) -> EngineError:
    """A process that ended without a last word."""
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    last = f"; it said: {lines[-1].strip()}" if lines else ""
    if status == -signal.SIGKILL:
        return OutOfMemoryError(
            f"{runtime.name} was killed ({subject}), as the system does where memory runs out: "
            f"lower --batch, --prompt or --new"
        )
    if status < 0:
        return _Crashed(f"{runtime.name} crashed with {_signal_name(-status)} ({subject}){last}")
    return EngineError(f"{runtime.name} ended with exit status {status} ({subject}){last}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
