"""How a text is named: ``FILE|DATASET[:SPLIT][:COLUMN]``. No tensor library: the terminal asks too.

A path may contain colons of its own: the longest path that exists is the file or folder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_PARTS = re.compile(r"(?P<first>[^:\[]+(\[[^\]]*\])?)(:(?P<second>.+))?")


_SHARD = re.compile(r"(?P<split>train|test|validation|dev|[A-Za-z_]+(?=-\d))(-\d+-of-\d+)?")


class OnDisk(NamedTuple):
    """A named text that is a file or a folder."""

    path: Path
    rest: str
    """What follows the path's colon: a split, a column, or both; empty if nothing does."""


def on_disk(asked: str) -> OnDisk | None:
    """The file or folder that a name begins with; None if there is none.

    Raises:
        RuntimeError: the name begins with the home of an unknown user.
    """
    end = len(asked)
    while end > 0:
        path = Path(asked[:end]).expanduser()
        if path.exists():
            return OnDisk(path, asked[end + 1 :])
        end = asked.rfind(":", 0, end)
    return None


def parquet_files(folder: Path) -> dict[str, list[Path]]:
    """The Parquet files of a folder, or of its ``data``, by split; those of one in their order.

    ``train-00000-of-00002.parquet`` is of the split ``train``, as the hub has it, and so is
    ``train.parquet``; where names tell no splits, all files are of one without a name. None of a
    dataset that was saved with ``datasets.save_to_disk``.
    """
    if any((folder / name).exists() for name in ("state.json", "dataset_dict.json")):
        return {}
    files = sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))
    splits: dict[str, list[Path]] = {}
    for file in files:
        found = _SHARD.fullmatch(file.stem)
        splits.setdefault(found["split"] if found else "", []).append(file)
    return {"": files} if "" in splits else splits


def split_and_column(rest: str) -> tuple[str, str]:
    """What follows a dataset's name, in two parts: ``train[:9]:text`` is ``train[:9]``, ``text``.

    The first may be a split or a column: only the dataset can tell. Empty where not given.
    """
    found = _PARTS.fullmatch(rest)
    return (found["first"], found["second"] or "") if found else (rest, "")
