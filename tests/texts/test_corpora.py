"""Texts, and the tokens of their beginnings."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from transformers import AutoTokenizer

from engine.demo import DEMO_PATH
from engine.errors import TextError
from engine.texts.corpora import evaluation_text, first_tokens, held_out_library


@pytest.mark.parametrize("wanted", [1, 100, 4096, 10_000_000])
def test_first_tokens_are_those_of_the_whole_text(wanted: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_PATH)
    content = held_out_library().content[:200_000]
    whole = tokenizer(content)["input_ids"]
    found = first_tokens(tokenizer, content, wanted)
    assert len(found) >= min(wanted, len(whole))
    assert found == whole[: len(found)]


def test_without_network_the_default_text_is_the_standard_library_and_said() -> None:
    told: list[str] = []
    text = evaluation_text(None, demo=False, notify=told.append)
    assert text.name == "stdlib"
    assert len(told) == 1
    assert "Python standard library" in told[0]


def test_a_dataset_on_disk_is_joined_by_empty_lines(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict({"text": ["one", "two"], "other": [1, 2]})
    made.save_to_disk(str(tmp_path / "set"))
    text = evaluation_text(str(tmp_path / "set"), demo=False, notify=print)
    assert text.content == "one\n\ntwo"


@pytest.mark.parametrize("asked", ["./nothing.txt", "nobody/no-such-set"])
def test_a_text_that_is_not_there_is_named(asked: str) -> None:
    with pytest.raises(TextError, match=r"nothing|no-such-set"):
        evaluation_text(asked, demo=True, notify=print)


def test_a_dataset_without_text_says_which_columns_it_has(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict({"label": [1, 2]})
    made.save_to_disk(str(tmp_path / "set"))
    with pytest.raises(TextError, match="label"):
        evaluation_text(str(tmp_path / "set"), demo=False, notify=print)
