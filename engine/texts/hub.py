"""Datasets of the hub: downloaded if it is reachable, otherwise from the local cache.

The hub's own client makes the request, since it handles proxies, certificates, mirrors and
``HF_HUB_OFFLINE``. It makes one request with a short timeout, since the libraries retry for half a
minute before they use their cache.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engine.errors import TextError, first_line

log = logging.getLogger(__name__)

PROBE_SECONDS = 3.0
"""Timeout of the request, in seconds."""

UNREACHABLE = "is not in the local cache, and the hub cannot be reached"

_NO_SPLIT = ("Unknown split", "Bad split")
"""How ``datasets`` begins its error for a split that a dataset does not have."""

_switching = threading.Lock()


class NoSuchSplitError(TextError):
    """The dataset has no split of this name; the message lists those it has."""


def load_split(path: str, config: str | None, split: str, file: str = "") -> Any:
    """One split of a dataset.

    Args:
        path: the dataset's id.
        config: one of its configurations; None where it has only one.
        split: such as ``test``.
        file: the only file of the dataset to download, as that split; empty for all.

    Raises:
        NoSuchSplitError: the dataset has no such split.
        TextError: the dataset does not exist, or it is not cached and the hub is unreachable.
    """
    import datasets

    online = reachable()
    one: dict[str, Any] = {"data_files": {split: file}} if file else {}
    try:
        if online:
            return datasets.load_dataset(path, config, split=split, **one)
        with offline():
            return datasets.load_dataset(path, config, split=split, **one)
    except Exception as error:  # the dataset's own reader may raise anything
        if (said := first_line(error)).startswith(_NO_SPLIT):
            raise NoSuchSplitError(f"the dataset {path}: {said}") from error
        why = said if online else UNREACHABLE
        raise TextError(f"the dataset {path} {why}") from error


def reachable() -> bool:
    """Whether the hub answers; False in offline mode."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, httpx

    # Offline mode is an OSError. A client is not even made with a proxy that is misspelt
    # (ValueError), or a SOCKS proxy without the package for it (ImportError).
    failures = (OSError, httpx.HTTPError, httpx.InvalidURL, ValueError, ImportError)
    try:
        answer = get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except failures as error:
        log.info("the hub cannot be reached: %s", error)
        return False
    # A proxy that cannot reach the hub answers with one of these.
    return bool(answer.status_code < 500)


@contextmanager
def offline() -> Iterator[None]:
    """Offline mode of the hub's client and of ``datasets``, during one load.

    Both read their flag at every request, so offline mode ends with the load. Meanwhile it also
    applies to requests of other threads.
    """
    import datasets.config
    from huggingface_hub import constants

    with _switching:
        before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
