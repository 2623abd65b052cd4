"""The local cache of the hub's client, located without importing the client."""

from __future__ import annotations

import os
from pathlib import Path


def hub_folder() -> Path:
    """The folder of the hub's downloads, by the client's own environment variables."""
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if given:
        return Path(os.path.expandvars(given)).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def hub_cache() -> list[str]:
    """Ids of the models in the local cache, in alphabetical order; possibly incomplete."""
    found = []
    try:
        for folder in hub_folder().iterdir():
            kind, _, name = folder.name.partition("--")
            if kind == "models" and name and any((folder / "snapshots").glob("*")):
                found.append(name.replace("--", "/"))
    except OSError:
        return sorted(found, key=str.lower)
    return sorted(found, key=str.lower)
