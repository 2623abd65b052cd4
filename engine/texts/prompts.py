"""Prompts to continue: lines of a text file, rows of a JSON-lines file, or as typed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import TextError
from engine.texts.chats import ChatError, Messages, as_chat, render
from engine.texts.given_files import objects, read_given
from engine.texts.tokenizing import token_ids

MOST = 2000
"""Prompts of a file: each is continued twice."""
LARGEST = 32 << 20
"""Bytes of a file."""
FIELDS = ("id", "prompt", "messages", "topic", "rephrases")


class Prompt(msgspec.Struct, frozen=True):
    """One prompt."""

    id: str
    text: str = ""
    messages: Messages | None = None
    """A chat, in place of the text."""
    topic: str = ""
    """What it is about, for rates by topic; empty if not said."""
    rephrases: str = ""
    """The ``id`` of a prompt that asks for the same in other words."""


class Tokens(msgspec.Struct, frozen=True):
    """A prompt as a model is given it."""

    prompt: Prompt
    text: str
    """A chat as its template writes it."""
    ids: list[int]


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file.

    A name that ends in ``.jsonl``, ``.ndjson`` or ``.json`` has an object a line, with ``prompt``
    or ``messages``, and where wanted ``id``, ``topic`` and ``rephrases``. Any other file has a
    prompt a line. Blank lines are skipped.

    Raises:
        TextError: it cannot be read, a line is no prompt, or there are none, or too many.
    """
    content = read_given(path, "prompts", LARGEST)
    rows = path.suffix.lower() in (".jsonl", ".ndjson", ".json")
    found = list(_rows(path, content) if rows else _lines(content))
    if not found:
        raise TextError(f"{path}: there is no prompt in it")
    if len(found) > MOST:
        raise TextError(f"{path}: {len(found)} prompts: at most {MOST} are continued at once")
    known = {prompt.id for prompt in found}
    for prompt in found:
        if prompt.rephrases and prompt.rephrases not in known:
            raise TextError(
                f"{path}: {prompt.id} rephrases {prompt.rephrases!r}, which is not there"
            )
    if len(known) < len(found):
        twice = next(each.id for at, each in enumerate(found) if each.id in
                     {other.id for other in found[:at]})  # fmt: skip
        raise TextError(f"{path}: two prompts are called {twice!r}: give each an id of its own")
    return found


def typed(texts: Sequence[str]) -> list[Prompt]:
    """Prompts as typed."""
    return [Prompt(f"typed {number}", text) for number, text in enumerate(texts, 1) if text.strip()]


def _lines(content: str) -> Iterator[Prompt]:
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield Prompt(str(number), line.rstrip("\r"))


def _rows(path: Path, content: str) -> Iterator[Prompt]:
    for number, where, row in objects(path, content, "a prompt or messages"):
        yield _prompt(where, number, row)


def _prompt(where: str, number: int, row: dict[str, Any]) -> Prompt:
    text, messages = row.get("prompt"), None
    if isinstance(text, list):  # some files call a chat a prompt
        row, text = {**row, "messages": text}, None
    if row.get("messages") is not None:
        messages = as_chat(row["messages"])
        if messages is None:
            raise TextError(f"{where}: messages are no chat: each needs a role and content")
    if messages is None and not (isinstance(text, str) and text.strip()):
        raise TextError(f"{where}: there is neither a prompt nor messages")
    said = {name: row.get(name) for name in ("id", "topic", "rephrases")}
    for name, value in said.items():
        if value is not None and not isinstance(value, str | int):
            raise TextError(f"{where}: {name} is neither text nor a number")
    words = {name: "" if value is None else str(value) for name, value in said.items()}
    return Prompt(
        words["id"] or str(number), text or "", messages, words["topic"], words["rephrases"]
    )


def tokenised(prompts: Sequence[Prompt], tokenizer: Any, *, chat: bool) -> list[Tokens]:
    """Prompts as a model is given them.

    Args:
        prompts: to tokenise.
        tokenizer: of transformers.
        chat: whether all are written by the tokenizer's chat template, up to where the reply
            begins; a plain prompt is the user's message. It is needed for messages.

    Raises:
        TextError: a chat cannot be written, or was not asked for, or a prompt has no token.
        CheckpointError: the tokenizer or its template fails.
    """
    return [_tokenised(prompt, tokenizer, chat) for prompt in prompts]


def _tokenised(prompt: Prompt, tokenizer: Any, chat: bool) -> Tokens:
    text = prompt.text
    if prompt.messages is not None and not chat:
        raise TextError(
            f"prompt {prompt.id} is a chat: ask for the tokenizer's chat template (--chat)"
        )
    if chat:
        messages = prompt.messages or [{"role": "user", "content": text}]
        try:
            text = render(tokenizer, messages, reply=True)
        except ChatError as error:
            raise TextError(f"prompt {prompt.id}: the chat template refuses it: {error}") from error
    ids = token_ids(tokenizer, text, special_tokens=not chat)
    if not ids:
        raise TextError(f"prompt {prompt.id} has no token: leave it out")
    return Tokens(prompt, text, ids)
