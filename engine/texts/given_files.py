"""Files of prompts and of tasks: read whole, and their lines of JSON, one object each."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import TextError


def read_given(path: Path, what: str, largest: int) -> str:
    """The text of a file.

    Args:
        path: of a regular file: a pipe or a device would never end.
        what: is in it, in words.
        largest: bytes that it has at most.

    Raises:
        TextError: it cannot be read, is too large, or not UTF-8.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise TextError(f"{path} is no regular file: expected a file of {what}")
        if found.st_size > largest:
            raise TextError(f"{path}: more than {largest >> 20} MiB: expected a file of {what}")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(f"{path}: not UTF-8 at byte {error.start}: convert it") from error
    except OSError as error:
        raise TextError(f"{path}: cannot be read: {error.strerror or error}") from error


def objects(path: Path, content: str, expected: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The number of each line, where that is in words, and its object; blank lines are skipped.

    Args:
        path: of the file, for errors.
        content: of it.
        expected: what an object has, in words.

    Raises:
        TextError: a line is no object of JSON, or has half a character (a lone surrogate), which
            neither a tokenizer nor a file can hold.
    """
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise TextError(f"{where} has half a character: write all of it") from error
        except (ValueError, RecursionError) as error:  # ValueError: also of numbers without end
            raise TextError(f"{where} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise TextError(f"{where}: expected an object with {expected}")
        yield number, where, row
