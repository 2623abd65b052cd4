"""Which tasks there are: checked when they are asked for, before a model is waited for."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from engine.errors import UsageError
from engine.texts.task_items import is_task_file, read_files


def check_tasks(tasks: Sequence[str], *, trusted: bool) -> None:
    """Check files of tasks, and that lm-eval is there for others.

    Args:
        tasks: files of JSON lines, and names of lm-eval's tasks.
        trusted: whether code of others may run, as that beside a task of lm-eval's in a file.

    Raises:
        TextError: a file cannot be read.
        UsageError: lm-eval is not installed, or must not run a file.
    """
    read_files([Path(task) for task in tasks if is_task_file(task)])
    for task in tasks:
        if is_task_file(task):
            continue
        if importlib.util.find_spec("lm_eval") is None:
            raise UsageError(
                f"{task} is no file of JSON lines (.jsonl), and lm-eval is not installed: "
                f"pip install lm-eval"
            )
        if Path(task).is_file() and not trusted:
            raise UsageError(f"{task} may have lm-eval run code beside it: --trust-remote-code")
