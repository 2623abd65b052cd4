"""Texts as people have them: datasets with several columns, JSON lines, Parquet, gzip, chats."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from engine.errors import TextError
from engine.texts import corpora
from engine.texts.corpora import Text, evaluation_text, first_tokens
from engine.texts.hub import NoSuchSplitError
from engine.texts.naming import on_disk, split_and_column
from qtui.cli.options import located_text
from tests import tiny

ROWS = ["one 1\n", "two\n\n2", "", "three ü"]
JOINED = "\n\n".join(ROWS)
CHATS = [
    [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}],
    [{"role": "user", "content": "and?"}],
]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if messages[0]['role'] == 'tool' %}{{ raise_exception('no tool may begin') }}{% endif %}"
)


def read(path: Path | str, tokenizer: Any = None, said: list[str] | None = None) -> Text:
    notify = said.append if said is not None else pytest.fail
    return evaluation_text(str(path), demo=False, notify=notify, tokenizer=tokenizer)


def saved(path: Path, columns: dict[str, list[Any]]) -> Path:
    datasets.Dataset.from_dict(columns).save_to_disk(str(path))
    return path


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """A dataset whose first column is a hash."""
    columns = {"sha": ["a1", "b2", "c3", "d4"], "size": [1, 2, 3, 4], "content": ROWS}
    return saved(tmp_path / "stack", columns)


def chatting() -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    datasets.Dataset.from_list(rows).to_parquet(str(path))


def _text(write: Callable[[list[dict[str, Any]]], str]) -> Callable[..., None]:
    return lambda path, rows: path.write_text(write(rows), encoding="utf-8")


def _packed(pack: Callable[[bytes], bytes]) -> Callable[..., None]:
    lines = _lines
    return lambda path, rows: path.write_bytes(pack(lines(rows).encode()))


def _lines(rows: list[dict[str, Any]]) -> str:
    return "\n".join(map(json.dumps, rows)) + "\n"


FILES: dict[str, Callable[..., None]] = {
    "a.jsonl": _text(_lines),
    "a.ndjson": _text(lambda rows: "\ufeff" + _lines(rows)),
    "a.json": _text(json.dumps),
    "b.json": _text(lambda rows: json.dumps({"version": 1, "data": rows})),
    "c.json": _text(_lines),
    "a.jsonl.gz": _packed(gzip.compress),
    "a.jsonl.bz2": _packed(bz2.compress),
    "a.parquet": _parquet,
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_rows_is_read_by_its_text_column(name: str, tmp_path: Path) -> None:
    FILES[name](tmp_path / name, [{"id": i, "text": row} for i, row in enumerate(ROWS)])
    text = read(tmp_path / name)
    assert (text.content, text.name, text.column) == (JOINED, name, "text")
    assert (text.documents, text.skipped) == (len(ROWS), 0)


def test_rows_of_strings_have_no_column(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    assert read(tmp_path / "a.json") == Text("a.json", JOINED, documents=4)


def test_csv_is_read_by_its_text_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,"one, ""1"""\n2,two\n')
    assert read(tmp_path / "a.csv").content == 'one, "1"\n\ntwo'


def test_a_compressed_text_is_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(JOINED.encode()))
    assert read(tmp_path / "a.txt.gz") == Text("a.txt.gz", JOINED)
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(JOINED.encode())[:-9])
    with pytest.raises(TextError, match=r"cut\.txt\.gz: cannot be decompressed"):
        read(tmp_path / "cut.txt.gz")


def test_a_content_column_is_found_behind_others(stack: Path) -> None:
    text = read(stack)
    assert (text.content, text.column, text.documents) == (JOINED, "content", 4)
    assert read(f"{stack}:sha").content == "a1\n\nb2\n\nc3\n\nd4"


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"question": ["a"], "answer": ["b"]}, r"which column .*question \(string\), answer"),
        ({"article": ["a"], "story": ["b"]}, r"which column .*article"),
        ({"hash": ["a"], "n": [1]}, r"which column .* as in --text .*set:hash$"),
        ({"messages": CHATS}, r"which column .*messages \(chats\).*:messages$"),
        ({"n": [1]}, r"no text column: its columns are n \(int64\)"),
        ({"text": [None, None], "n": [1, 2]}, r"no text column"),
        ({"text": ["", " "]}, r"none of its 2 rows has text"),
        ({"text": []}, r"is empty: it has no rows"),
    ],
)
def test_a_text_that_is_not_sure_is_asked_for(
    columns: dict[str, list[Any]], said: str, tmp_path: Path
) -> None:
    with pytest.raises(TextError, match=said):
        read(saved(tmp_path / "set", columns))


@pytest.mark.parametrize(("column", "said"), [("size", "holds int64"), ("no", "has no column")])
def test_a_column_that_cannot_be_read_is_refused(stack: Path, column: str, said: str) -> None:
    with pytest.raises(TextError, match=rf"{said}.*sha \(string\), size"):
        read(f"{stack}:{column}")


def test_rows_without_text_are_skipped_and_counted(tmp_path: Path) -> None:
    said: list[str] = []
    text = read(saved(tmp_path / "set", {"text": ["a", None, "b"]}), said=said)
    assert (text.content, text.documents, text.skipped) == ("a\n\nb", 2, 1)
    assert "skipped 1 of 3 rows" in said[0]
    rows = [{"text": "a"}, {"text": 5}, {"other": 1}, "b", {"text": "\ud800"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    text = read(tmp_path / "a.json", said=said)
    assert (text.content, text.documents, text.skipped) == ("a", 1, 4)


def test_lines_that_are_not_json_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n{"text": \n')
    with pytest.raises(TextError, match=r"a\.jsonl: line 3 is not JSON"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("sharegpt", [False, True])
def test_chats_are_what_the_template_writes(sharegpt: bool, tmp_path: Path) -> None:
    tokenizer = chatting()
    names = {"user": "human", "assistant": "gpt"}
    theirs = [[{"from": names[m["role"]], "value": m["content"]} for m in c] for c in CHATS]
    set_ = saved(tmp_path / "set", {"prompt": ["x", "y"], "chat": theirs if sharegpt else CHATS})
    text = read(f"{set_}:chat", tokenizer)
    assert text.content == "".join(
        tokenizer.apply_chat_template(chat, tokenize=False) for chat in CHATS
    )
    assert text.documents == 2
    ids = first_tokens(tokenizer, text.content, 9, special_tokens=text.special_tokens)
    assert ids == tokenizer(text.content, add_special_tokens=False)["input_ids"]


def test_chats_that_the_template_refuses_are_skipped_and_counted(tmp_path: Path) -> None:
    refused = [{"role": "tool", "content": "x"}]
    rows = [{"messages": chat} for chat in (*CHATS, refused, [], None)]
    (tmp_path / "a.jsonl").write_text(_lines(rows))
    said: list[str] = []
    text = read(f"{tmp_path / 'a.jsonl'}:messages", chatting(), said)
    assert (text.documents, text.skipped) == (2, 3)
    assert "no tool may begin" in said[0]


def test_chats_need_a_template(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="the tokenizer has no chat template"):
        read(f"{saved(tmp_path / 'set', {'messages': CHATS})}:messages", tiny.tokenizer())


def test_a_split_and_a_column_of_a_saved_dataset(tmp_path: Path) -> None:
    splits = {
        name: datasets.Dataset.from_dict({"text": [name], "other": ["o"]}) for name in ("a", "b")
    }
    path = tmp_path / "with:colon"
    datasets.DatasetDict(splits).save_to_disk(str(path))
    with pytest.raises(TextError, match=r"several splits \(a, b\).*with:colon:a"):
        read(path)
    assert read(f"{path}:b").content == "b"
    other = read(f"{path}:b:other")
    assert (other.content, other.name, other.column) == ("o", "with:colon:b", "other")


def test_what_follows_a_hub_name_is_a_split_or_else_a_column(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def load_split(path: str, config: str | None, split: str) -> Any:
        asked.append(split)
        if split not in ("test", "train[:9]"):
            raise NoSuchSplitError(f"the dataset {path}: Unknown split")
        return datasets.Dataset.from_dict({"text": [split], "answer": ["a"]})

    monkeypatch.setattr(corpora, "load_split", load_split)
    assert read("x/y").content == "test"
    assert read("x/y:train[:9]").content == "train[:9]"
    assert read("x/y:answer").content == "a"
    assert read("x/y:train[:9]:answer").content == "a"
    with pytest.raises(NoSuchSplitError):
        read("x/y:no:answer")
    assert asked == ["test", "train[:9]", "answer", "test", "train[:9]", "no"]


def test_a_text_is_named_by_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert located_text("a.jsonl:content") == f"{tmp_path / 'a.jsonl'}:content"
    assert located_text("a.jsonl") == str(tmp_path / "a.jsonl")
    assert located_text("owner/set:train") == "owner/set:train"
    assert on_disk("a.jsonl:x:y") == (Path("a.jsonl"), "x:y")
    assert split_and_column("train[:9]:text") == ("train[:9]", "text")


def _shards(folder: Path, *names: str, column: str = "text") -> Path:
    folder.mkdir(parents=True)
    for name in names:
        _parquet(folder / f"{name}.parquet", [{column: name, "size": 1}, {column: "", "size": 2}])
    return folder


@pytest.mark.parametrize("inside", ["", "data"])
def test_a_folder_of_parquet_files_is_one_text_or_its_splits(tmp_path: Path, inside: str) -> None:
    names = ("train-00001-of-00002", "train-00000-of-00002", "test-00000-of-00001")
    _shards(tmp_path / "hub" / inside, *names)
    with pytest.raises(TextError, match=r"several splits \(test, train\).*hub:test"):
        read(tmp_path / "hub")
    train = read(f"{tmp_path / 'hub'}:train")
    assert train.content == "train-00000-of-00002\n\n\n\ntrain-00001-of-00002\n\n"
    assert (train.name, train.documents, train.column) == ("hub:train", 4, "text")
    assert read(f"{tmp_path / 'hub'}:test:text").content == "test-00000-of-00001\n\n"


def test_loose_parquet_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    one = _shards(tmp_path / "one", "b", "a")
    assert read(one).content == "a\n\n\n\nb\n\n"
    assert read(_shards(tmp_path / "part", "part-1", "part-0")).content.startswith("part-0")
    with pytest.raises(TextError, match=r"column 'size' holds int64"):
        read(f"{one}:size")
    _parquet(one / "c.parquet", [{"body": "other"}])
    with pytest.raises(TextError, match=r"c\.parquet has the columns body .*: name one file"):
        read(one)


def test_a_folder_of_something_else_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(TextError, match="nor a folder of Parquet files"):
        read(tmp_path)
