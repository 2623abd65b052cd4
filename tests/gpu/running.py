"""Runs a step in a process of its own, under a time limit, and hands on its rows at once.

What a step breaks (a CUDA error ends every later call of its process) the next one does not see.
"""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from tests.gpu.rows import Recorder, Row
from tests.gpu.steps import TINY_SECONDS, Options, Step

PRELOADED = (
    "torch",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "engine.service.engine",
    "engine.opening.stages",
    "engine.measure.sweep.sweep",
)


def preload() -> None:
    """Import once what every forked step needs. Only for a processor: CUDA survives no fork."""
    import importlib

    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # steps that look for garbage need not look in there


def run_step(step: Step, options: Options, take: Callable[[Row], None]) -> str:
    """Run a step; returns why it did not end well, or nothing."""
    forked = options.device == "cpu"
    context = multiprocessing.get_context("fork" if forked else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(step, options, sender))
    process.start()
    sender.close()
    limit = TINY_SECONDS if options.tiny else step.seconds
    deadline = time.monotonic() + limit
    why = f"stopped after its {limit} s"
    try:
        while (left := deadline - time.monotonic()) > 0:
            if not receiver.poll(left):
                break
            try:
                said = receiver.recv()
            except EOFError:
                process.join(5)
                code = process.exitcode
                why = f"its process ended with {_signal(code)}"
                break
            if isinstance(said, Row):
                take(said)
            else:
                why = said
                break
    finally:
        _end(process.pid)
        process.join(5)
        receiver.close()
    return why


def _signal(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit status {code}"


def _end(pid: int | None) -> None:
    """Kill the step's process and all that it started: they are a session of their own."""
    if pid is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _child(step: Step, options: Options, sender: Connection) -> None:
    os.setsid()
    faulthandler.enable(2)
    try:
        _own_home(options.folder)
        step.run(options, Recorder(step.name, sender.send))
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent tells it
        traceback.print_exc()
        sys.stderr.flush()
        sender.send(f"{type(error).__name__}: {' '.join(str(error).split())[:600]}")
    else:
        sender.send("")
    finally:
        sender.close()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # threads of an engine that did not end are no reason to wait


def _own_home(folder: Path) -> None:
    """XDG folders of this step alone."""
    home = Path(tempfile.mkdtemp(prefix="h", dir=folder))
    for name in ("STATE_HOME", "CONFIG_HOME", "CACHE_HOME", "RUNTIME_DIR"):
        own = home / name[:2].lower()
        own.mkdir()
        os.environ[f"XDG_{name}"] = str(own)
