"""Rows of a dataset as one text: which column is read, and what is skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import TextError
from engine.texts.chats import ChatError, as_chat, render
from engine.texts.text import JOINT, Text

Notify = Callable[[str], None]

STRING, CHAT = "string", "chats"
"""Kinds of columns that can be read."""

SURELY_TEXT = ("text", "content")
"""Columns that are read without asking, the first that exists."""
LIKE_TEXT = frozenset(
    {"article", "body", "code", "contents", "document", "page_content", "passage"}
    | {"raw_content", "raw_text", "sentence", "story"}
)
"""Columns that are read without asking, if there is only one of them."""


@dataclass(frozen=True)
class Rows:
    """The rows of a dataset, column by column."""

    name: str
    """For messages."""
    count: int
    kinds: Mapping[str, str]
    """What each column holds: `STRING`, `CHAT`, or the name of another type."""
    values: Callable[[str], Iterable[Any]]
    """The values of a column, in order."""


@dataclass(frozen=True)
class Asked:
    """A dataset as the user named it."""

    given: str
    """Without the column."""
    column: str = ""
    """Empty if it is to be chosen."""
    option: str = "--text"
    tokenizer: Any = None
    """For chats."""
    chats: bool | None = None
    """Whether chats are what is asked for, which the tokenizer's template renders, a program of the
    checkpoint's; None if only a column that is named may hold some."""


def text_of(rows: Rows, name: str, asked: Asked, notify: Notify) -> Text:
    """One column as a text: its rows joined by empty lines, chats as their template writes them.

    Args:
        rows: the dataset.
        name: of the text.
        asked: as the user named it.
        notify: called with a sentence if rows are skipped.

    Raises:
        TextError: there are no rows, or none with text; the column does not exist or holds
            something else; or no column is surely the text.
    """
    if rows.count == 0:
        raise TextError(f"{rows.name} is empty: it has no rows")
    column = _checked(rows, asked) if asked.column else _chosen(rows, asked)
    values = rows.values(column)
    chats = rows.kinds[column] == CHAT
    if chats and asked.chats is False:
        raise TextError(
            f"{rows.name}: {column!r} holds chats: write chat:{asked.given} to have the "
            "tokenizer's template render them, or name a column of text"
        )
    found, why = _chats(values, rows, asked) if chats else (_strings(values), "no text")
    skipped = rows.count - len(found)
    if not any(each.strip() for each in found):
        raise TextError(f"{rows.name}: none of its {rows.count:,} rows has text in {column!r}")
    if skipped:
        have = "row has" if skipped == 1 else "rows have"
        notify(f"{rows.name}: skipped {skipped:,} of {rows.count:,} rows: {have} {why} in {column}")
    content = ("" if chats else JOINT).join(found)
    return Text(name, content, column, len(found), skipped, special_tokens=not chats)


def _strings(values: Iterable[Any]) -> list[str]:
    return [each for each in values if isinstance(each, str) and _is_unicode(each)]


def _is_unicode(text: str) -> bool:
    """Half of a surrogate pair, which JSON can escape, is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _chats(values: Iterable[Any], rows: Rows, asked: Asked) -> tuple[list[str], str]:
    """The chats that the template can write, and why it cannot write the others."""
    found, why = [], "no messages"
    for each in values:
        messages = as_chat(each)
        if not messages:
            continue
        try:
            found.append(render(asked.tokenizer, messages))
        except ChatError as error:
            why = f"no chat that the tokenizer's template accepts ({error})"
    if not found:
        raise TextError(f"{rows.name}: none of its {rows.count:,} rows can be read: {why}")
    return _strings(found), why


def _checked(rows: Rows, asked: Asked) -> str:
    kind = rows.kinds.get(asked.column)
    if kind is None:
        raise TextError(
            f"{rows.name} has no column {asked.column!r}: its columns are {listed(rows.kinds)}"
        )
    if kind not in (STRING, CHAT):
        raise TextError(
            f"{rows.name}: column {asked.column!r} holds {kind}, not text: its columns are "
            f"{listed(rows.kinds)}"
        )
    return asked.column


def _chosen(rows: Rows, asked: Asked) -> str:
    """The column that is surely the text."""
    chats = [name for name, kind in rows.kinds.items() if kind == CHAT]
    if len(chats) == 1 and (asked.chats or (asked.chats is False and len(rows.kinds) == 1)):
        return chats[0]
    strings = [name for name, kind in rows.kinds.items() if kind == STRING]
    lower = {name.lower(): name for name in reversed(strings)}
    for name in SURELY_TEXT:
        if name in lower:
            return lower[name]
    like = [name for name in strings if name.lower() in LIKE_TEXT]
    alone = strings if len(rows.kinds) == 1 else []
    if len(like or alone) == 1:
        return (like or alone)[0]
    readable = like or [name for name, kind in rows.kinds.items() if kind in (STRING, CHAT)]
    if not readable:
        raise TextError(f"{rows.name} has no text column: its columns are {listed(rows.kinds)}")
    raise TextError(
        f"{rows.name}: which column is the text? Its columns are {listed(rows.kinds)}: name one, "
        f"as in {asked.option} {asked.given}:{readable[0]}"
    )


def listed(kinds: Mapping[str, str]) -> str:
    """Columns with what they hold."""
    names: Sequence[str] = list(kinds)[:20]
    more = f", and {len(kinds) - len(names)} more" if len(kinds) > len(names) else ""
    return ", ".join(f"{name} ({kinds[name]})" for name in names) + more
