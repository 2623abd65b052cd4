"""Reads the texts that have a name: see `engine.texts.sets`."""

from __future__ import annotations

from typing import Any

from engine.errors import TextError
from engine.texts import stdlib
from engine.texts.hub import load_split
from engine.texts.rows import Notify
from engine.texts.sets import NAMED, NamedSet, Part, Source
from engine.texts.text import JOINT, Text

HELD_OUT = 10
"""One row in so many, the last ones, is for evaluation where a dataset has one split."""


def named_text(name: str, part: Part, *, demo: bool, notify: Notify) -> Text:
    """A part of a named set.

    Args:
        name: one of `NAMED`.
        part: what it is for.
        demo: whether the model is the bundled checkpoint.
        notify: called with a sentence if the standard library is used in its place.

    Raises:
        TextError: the dataset cannot be had; the message says what to do.
    """
    found = NAMED[name]
    if found.train is None or (demo and found.library is not None):
        return _of_library(found, part)
    try:
        return _of_hub(found, found.train, part)
    except TextError as error:
        if found.library is not None:
            notify(f"{error}; {name} is this machine's Python standard library instead")
            return _of_library(found, part)
        local = ", ".join(each for each in NAMED if NAMED[each].library is not None)
        raise TextError(
            f"the set {name}: {error}: load it once on a machine with a network and copy the cache "
            f"of datasets (HF_HOME), name a file or folder instead, or one of {local}, which need "
            "no network"
        ) from error


def _of_library(found: NamedSet, part: Part) -> Text:
    assert found.library is not None
    texts = [text for _, text in found.library("train" if part == "train" else "held-out")]
    if not texts:
        raise TextError(
            f"the set {found.name}: this Python has no standard library sources on disk: name a "
            "file instead"
        )
    if part == "train" and found.backwards:
        texts.reverse()
    kind = "" if found.library is stdlib.modules else f" {found.name}"
    where = "train" if part == "train" else "held-out"
    return Text(f"stdlib{kind} {where}", JOINT.join(texts), documents=len(texts))


def _of_hub(found: NamedSet, train: Source, part: Part) -> Text:
    source = found.test if part == "test" and found.test is not None else train
    dataset = load_split(source.dataset, source.config, source.split, source.file)
    count = len(dataset)
    if source.rows:
        count = min(count, source.rows)
    rows = range(count)
    if found.test is None:
        cut = count - max(1, count // HELD_OUT)
        rows = rows[:cut] if part == "train" else rows[cut:]
    texts = _joined(dataset.select(rows), source)
    if not any(map(str.strip, texts)):
        raise TextError(
            f"the dataset {source.dataset} has no text in {' and '.join(source.columns)}"
        )
    return Text(f"{found.name} {part}", JOINT.join(texts), documents=len(texts))


def _joined(dataset: Any, source: Source) -> list[str]:
    missing = [each for each in source.columns if each not in dataset.column_names]
    if missing:
        raise TextError(
            f"the dataset {source.dataset} has no column {missing[0]!r}: its columns are "
            f"{', '.join(dataset.column_names)}"
        )
    columns = [dataset[each] for each in source.columns]
    return ["\n".join(map(str, row)) for row in zip(*columns, strict=True)]
