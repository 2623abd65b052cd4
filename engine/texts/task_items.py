"""Tasks in a file of JSON lines: multiple choice, and answers that must be written exactly.

A line of multiple choice has ``prompt``, ``choices`` and ``answer``: the number of the right
choice, from 0, its letter, or its text. A line without ``choices`` has ``prompt`` and ``answer``, a
text or a list of texts: it is right if one of them is what the model writes, taking the most likely
token each time. ``id`` and ``task`` are optional.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import msgspec

from engine.errors import TextError
from engine.texts.given_files import objects, read_given

MOST = 20_000
"""Items of a file."""
LARGEST = 64 << 20
"""Bytes of a file."""
CHOICES = 64
"""Choices of an item."""
FIELDS = ("id", "task", "prompt", "choices", "answer")
DELIMITER = " "
"""Between a prompt and an answer, as lm-eval's ``target_delimiter``, where neither has a space."""


class Item(msgspec.Struct, frozen=True):
    """One question."""

    id: str
    task: str
    """The name of the task that it is counted under."""
    prompt: str
    choices: tuple[str, ...]
    """Of multiple choice; else the answers, each of which is right."""
    right: int = -1
    """Number of the right choice; -1 where an answer must be written exactly."""

    def continuations(self) -> list[str]:
        """What is scored after the prompt."""
        joined = not self.prompt or self.prompt[-1].isspace()
        return [each if joined or each[0].isspace() else DELIMITER + each for each in self.choices]


def is_task_file(name: str) -> bool:
    """Whether a name is that of a file of JSON lines, rather than of one of lm-eval's tasks."""
    return name.endswith((".jsonl", ".ndjson", ".json"))


def read_tasks(path: Path) -> list[Item]:
    """The items of a file.

    Raises:
        TextError: it cannot be read, or a line is no item; the message names the line.
    """
    content = read_given(path, "tasks", LARGEST)
    found = list(_items(path, content))
    if not found:
        raise TextError(f"{path}: no line has a task: expected prompt, choices and answer")
    if len(found) > MOST:
        raise TextError(f"{path}: {len(found):,} items, at most {MOST:,} are scored: split it")
    return found


def read_files(paths: Sequence[Path]) -> list[Item]:
    """The items of several files, in order.

    Raises:
        TextError: see `read_tasks`; or two files have an item of the same task and id, as files of
            the same name in two folders do, which would be counted as one task.
    """
    found: list[Item] = []
    where: dict[tuple[str, str], Path] = {}
    for path in paths:
        for item in read_tasks(path):
            if (other := where.setdefault((item.task, item.id), path)) is not path:
                raise TextError(
                    f"{path} and {other} both have an item {item.id!r} of {item.task}: give one "
                    "another name, or its items another task"
                )
            found.append(item)
    return found


def _items(path: Path, content: str) -> Iterator[Item]:
    seen: set[tuple[str, str]] = set()
    for number, where, row in objects(path, content, "prompt, choices and answer"):
        item = _item(where, row, str(number), path.stem)
        if (item.task, item.id) in seen:
            raise TextError(f"{where}: there is an item {item.id!r} of {item.task} already")
        seen.add((item.task, item.id))
        yield item


def _item(where: str, row: dict[str, Any], number: str, stem: str) -> Item:
    if unknown := [name for name in row if name not in FIELDS]:
        raise TextError(f"{where}: unknown field {unknown[0]!r}: expected {', '.join(FIELDS)}")
    prompt, given, answer = row.get("prompt"), row.get("choices"), row.get("answer")
    names = [row.get("id", number), row.get("task", stem)]
    if not isinstance(prompt, str):
        raise TextError(f"{where}: prompt is {prompt!r}, expected a text")
    if not all(isinstance(each, str | int) for each in names):
        raise TextError(f"{where}: id and task are texts")
    id, task = map(str, names)
    if given is None:
        answers = [answer] if isinstance(answer, str) else answer
        if not _texts(answers):
            raise TextError(f"{where}: answer is {answer!r}, expected a text or a list of texts")
        return Item(id, task, prompt, tuple(answers))
    if not _texts(given) or not 2 <= len(given) <= CHOICES:
        raise TextError(f"{where}: choices must be a list of 2 to {CHOICES} texts, none empty")
    return Item(id, task, prompt, tuple(given), _right(where, answer, given))


def _texts(given: object) -> TypeGuard[list[str]]:
    return isinstance(given, list) and bool(given) and all(isinstance(x, str) and x for x in given)


def _right(where: str, answer: object, choices: list[str]) -> int:
    """The number of the right choice, however it is said."""
    if isinstance(answer, str):
        if choices.count(answer) == 1:
            return choices.index(answer)
        letters = string.ascii_uppercase[: len(choices)]
        if len(answer) == 1 and answer in letters:
            return letters.index(answer)
    elif isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    raise TextError(
        f"{where}: answer is {answer!r}, expected the number (from 0), the letter or the text of "
        f"one of {len(choices)} choices"
    )
