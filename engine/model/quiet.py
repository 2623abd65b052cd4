"""Keeps transformers' output off the terminal; we raise or report what matters."""

from __future__ import annotations

import logging as levels
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no log lines of transformers inside.

    Its lines quote the checkpoint's own strings as they are, control characters included.
    """
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(levels.CRITICAL + 1)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
