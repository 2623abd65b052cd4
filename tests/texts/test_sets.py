"""Named calibration sets: read without a network, from stand-ins for the hub, and from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from engine.errors import TextError
from engine.texts import named_sets
from engine.texts.corpora import calibration_set, calibration_text, evaluation_text
from engine.texts.sets import GENERATED, NAMED
from tests import tiny


def heard(sentence: str) -> None:
    raise AssertionError(f"nothing was to be said: {sentence}")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the hub has, by dataset; everything else cannot be had."""
    found: dict[str, Any] = {}

    def load(path: str, config: str | None, split: str, file: str = "") -> Any:
        if path not in found:
            raise TextError(f"the dataset {path} is not in the local cache")
        return found[path]

    monkeypatch.setattr(named_sets, "load_split", load)
    return found


@pytest.mark.parametrize("name", [name for name in NAMED if NAMED[name].library is None])
def test_a_set_that_cannot_be_had_says_what_to_do(name: str, hub: dict[str, Any]) -> None:
    with pytest.raises(TextError, match=f"the set {name}.*not in the local cache.*code, prose"):
        calibration_set(name, demo=False, notify=heard)


@pytest.mark.parametrize("name", ["code", "prose"])
def test_the_standard_library_needs_no_network_and_keeps_its_parts_apart(
    name: str, hub: dict[str, Any]
) -> None:
    said: list[str] = []
    train = calibration_set(name, demo=False, notify=said.append)
    test = evaluation_text(name, demo=False, notify=said.append)
    assert len(said) == (2 if name == "code" else 0)
    assert train.documents > test.documents > 0
    some = [document for document in test.content.split("\n\n\n") if len(document) > 2000]
    assert all(document not in train.content for document in some[:20])


def test_the_demos_code_is_what_it_calibrates_on_anyway(hub: dict[str, Any]) -> None:
    assert calibration_set("code", demo=True, notify=heard) == calibration_text(
        None, demo=True, notify=heard
    )
    assert evaluation_text("code", demo=True, notify=heard) == evaluation_text(
        None, demo=True, notify=heard
    )


def test_a_dataset_with_one_split_holds_its_last_rows_out(hub: dict[str, Any]) -> None:
    rows = [f"opinion {i}" for i in range(100)]
    hub["mit-han-lab/pile-val-backup"] = datasets.Dataset.from_dict({"text": rows})
    train = calibration_set("pile", demo=False, notify=heard)
    test = evaluation_text("pile", demo=False, notify=heard)
    assert train.content.split("\n\n") + test.content.split("\n\n") == rows
    assert (train.documents, test.documents) == (90, 10)


def test_columns_are_joined_row_by_row(hub: dict[str, Any]) -> None:
    hub["openai/gsm8k"] = datasets.Dataset.from_dict({"question": ["1+1?"], "answer": ["2"]})
    assert calibration_set("math", demo=False, notify=heard).content == "1+1?\n2"
    hub["openai/gsm8k"] = datasets.Dataset.from_dict({"question": ["1+1?"]})
    with pytest.raises(TextError, match=r"gsm8k has no column 'answer'"):
        calibration_set("math", demo=False, notify=heard)


def test_a_folder_of_texts_is_one_set(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("a.txt", "b/c.md", "ignored.bin"):
        (tmp_path / name).write_text(name)
    found = calibration_set(str(tmp_path), demo=False, notify=heard)
    assert (found.content, found.documents) == ("a.txt\n\nb/c.md", 2)


def test_chats_are_rendered_only_when_asked(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    chat = [{"role": "user", "content": "hello"}]
    file.write_text(json.dumps({"messages": chat}))
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    with pytest.raises(TextError, match=f"holds chats: write chat:{file}"):
        calibration_set(str(file), demo=False, notify=heard, tokenizer=tokenizer)
    found = calibration_set(f"chat:{file}", demo=False, notify=heard, tokenizer=tokenizer)
    assert found.content == "<user>hello"


def test_no_two_sets_have_one_name() -> None:
    assert not set(NAMED) & set(GENERATED)
    assert all(name == each.name for name, each in NAMED.items())
