"""Commands in processes of their own that need not import torch again.

Importing torch and transformers takes about three seconds. A process that is forked from one that
has them starts at once; it is as real as any other: it has its own memory and can be killed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "torch", "transformers", "transformers.models.llama.modeling_llama", "qtui.cli.headless",
        "engine.service.engine", "engine.opening.stages", "engine.measure.sweep.sweep",
        "engine.measure.estimate.estimate", "engine.report.json",
    ]
)  # fmt: skip


def process(target: Callable[..., None], *given: str, said: str | Path = os.devnull) -> BaseProcess:
    """A function in a process with this one's environment; what it says goes to a file."""
    passed = (target, given, dict(os.environ), str(said))
    found = _FORKS.Process(target=_call, args=passed, daemon=True)
    found.start()
    return found


def qtui(*arguments: str, said: str | Path = os.devnull) -> BaseProcess:
    """``qtui ARGUMENTS`` with this process's environment; what it says goes to a file."""
    return process(_run, *arguments, said=said)


def ran(*arguments: str, folder: Path) -> Any:
    """The document of ``qtui ARGUMENTS --json FILE``, from a process that ended well.

    Args:
        folder: where the document and what was said may be written.
    """
    document, said = folder / "document.json", folder / "said"
    process = qtui(*arguments, "--json", str(document), said=said)
    process.join()
    words = said.read_text() if said.exists() else "it said nothing"
    assert process.exitcode == 0, f"ended with {process.exitcode}: {words}"
    return json.loads(document.read_text())


def _call(
    target: Callable[..., None], given: Sequence[str], environment: Mapping[str, str], said: str
) -> None:
    os.environ.clear()  # what the process had that this one was forked from
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    into = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(into, standard)
    target(*given)


def _run(*arguments: str) -> None:
    from qtui.cli import main

    main(arguments)
