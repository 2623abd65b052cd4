"""Keeps transformers' output off the terminal; we raise or report what matters."""

from __future__ import annotations

import logging as levels
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_lock = Lock()
_inside = 0
"""How many are inside, of all threads: blocks are read ahead while others use transformers."""
_before: tuple[int, bool] = (levels.WARNING, True)
"""Its verbosity and whether it draws bars, as the first of them found them."""


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no log lines of transformers inside.

    Its lines quote the checkpoint's own strings as they are, control characters included.
    """
    global _inside, _before
    from transformers.utils import logging

    with _lock:
        _inside += 1
        if _inside == 1:
            _before = logging.get_verbosity(), logging.is_progress_bar_enabled()
            logging.set_verbosity(levels.CRITICAL + 1)
            logging.disable_progress_bar()
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                logging.set_verbosity(_before[0])
                if _before[1]:
                    logging.enable_progress_bar()
