"""Commands in processes of their own that need not import torch again.

Importing torch and transformers takes about three seconds. A process that is forked from one that
has them starts at once; it is as real as any other: it has its own memory and can be killed.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from multiprocessing.process import BaseProcess

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["torch", "transformers", "transformers.models.llama", "qtui.cli", "engine.service.engine"]
)


def qtui(*arguments: str) -> BaseProcess:
    """``qtui ARGUMENTS`` with this process's environment; it says nothing."""
    process = _FORKS.Process(target=_run, args=(arguments, dict(os.environ)), daemon=True)
    process.start()
    return process


def _run(arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
    os.environ.clear()  # what the process had that this one was forked from
    os.environ.update(environment)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    from qtui.cli import main

    main(arguments)
