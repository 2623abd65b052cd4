"""Prompts from files, as typed, and as chats."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from engine.errors import TextError
from engine.texts.prompts import Prompt, read_prompts, tokenised, typed
from tests import tiny

CHAT = [{"role": "user", "content": "Why?"}]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def file(folder: Path, name: str, *rows: Any) -> Path:
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    found = read_prompts(file(tmp_path, "p.txt", "  def f(x):\r", "", "   ", "Über {}"))
    assert found == [Prompt("1", "  def f(x):"), Prompt("4", "Über {}")]


def test_rows_have_prompts_or_chats(tmp_path: Path) -> None:
    found = read_prompts(
        file(
            tmp_path, "p.jsonl", {"prompt": "One", "id": 7, "topic": "numbers"}, "",
            {"messages": CHAT, "id": "why", "rephrases": 7},
            {"prompt": CHAT}, {"conversations": 1, "prompt": "Two"},
        )
    )  # fmt: skip
    assert found == [
        Prompt("7", "One", topic="numbers"),
        Prompt("why", messages=CHAT, rephrases="7"),
        Prompt("4", messages=CHAT),
        Prompt("5", "Two"),
    ]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no prompt in it"),
        (["{"], "line 1 is not JSON"),
        (['{"prompt": "a", "id": ' + "9" * 5000 + "}"], "line 1 is not JSON"),
        (["[" * 100_000], "line 1 is not JSON"),
        ([{"prompt": "a\ud800"}], "line 1 has half a character"),
        ([{"prompt": "a", "id": "\udfff"}], "line 1 has half a character"),
        ([[1]], "line 1: expected an object"),
        ([{"prompt": "a"}, {"prompt": "  "}], "line 2: there is neither"),
        ([{"prompt": "a", "id": [1]}], "line 1: id is neither"),
        ([{"messages": [{"text": "x"}]}], "line 1: messages are no chat"),
        ([{"prompt": "a", "id": 1}, {"prompt": "b", "id": "1"}], "two prompts are called '1'"),
        ([{"prompt": "a", "rephrases": "x"}], "1 rephrases 'x', which is not there"),
    ],
)
def test_what_is_no_prompt_is_named_with_its_line(
    tmp_path: Path, rows: list[Any], said: str
) -> None:
    path = file(tmp_path, "p.jsonl", *rows)
    with pytest.raises(TextError) as raised:
        read_prompts(path)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.jsonl")
    for path in (tmp_path / "p.jsonl", Path("/dev/zero"), tmp_path):
        with pytest.raises(TextError, match="no regular file"):
            read_prompts(path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"fine\n\xff\xfe")
    for path, said in ((bad, "not UTF-8 at byte 5"), (tmp_path / "absent", "cannot be read")):
        with pytest.raises(TextError, match=said):
            read_prompts(path)


def test_prompts_become_tokens_as_the_tokenizer_has_them() -> None:
    tokenizer = tiny.tokenizer()
    (found,) = tokenised(typed(["", "Why not?"]), tokenizer, chat=False)
    assert found.prompt.id == "typed 2"
    assert found.ids == tokenizer("Why not?")["input_ids"]


def test_a_chat_is_written_by_the_template_up_to_the_reply() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    prompts = [Prompt("1", "Why?"), Prompt("2", messages=CHAT)]
    found = tokenised(prompts, tokenizer, chat=True)
    assert [each.text for each in found] == ["<user>Why?<assistant>"] * 2
    assert found[0].ids == tokenizer("<user>Why?<assistant>", add_special_tokens=False)["input_ids"]


def test_chats_are_not_written_unless_asked_for() -> None:
    with pytest.raises(TextError, match=r"prompt 2 is a chat: .*--chat"):
        tokenised([Prompt("2", messages=CHAT)], tiny.tokenizer(), chat=False)
    with pytest.raises(TextError, match="no chat template"):
        tokenised([Prompt("2", messages=CHAT)], tiny.tokenizer(), chat=True)
