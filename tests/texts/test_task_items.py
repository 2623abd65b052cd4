"""Files of tasks: every way to say the right answer, and what is refused by its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.errors import TextError
from engine.texts.task_items import read_files, read_tasks


def file_of(folder: Path, *lines: object) -> Path:
    path = folder / "capitals.jsonl"
    path.write_text(
        "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    )
    return path


def test_the_right_choice_is_a_number_a_letter_or_a_text(tmp_path: Path) -> None:
    same = {"prompt": "The capital of France is", "choices": ["Rome", "Paris", "Oslo"]}
    path = file_of(
        tmp_path,
        {**same, "answer": 1},
        "",
        {**same, "answer": "B", "id": "letter"},
        {**same, "answer": "Paris", "task": "europe", "id": 7},
    )
    first, second, third = read_tasks(path)
    assert [each.right for each in (first, second, third)] == [1, 1, 1]
    assert [each.id for each in (first, second, third)] == ["1", "letter", "7"]
    assert [each.task for each in (first, third)] == ["capitals", "europe"]
    assert first.continuations() == [" Rome", " Paris", " Oslo"]


def test_a_letter_that_is_a_choice_is_that_choice(tmp_path: Path) -> None:
    (item,) = read_tasks(file_of(tmp_path, {"prompt": "x", "choices": ["B", "A"], "answer": "A"}))
    assert item.right == 1


def test_an_answer_to_write_may_be_one_of_several(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        {"prompt": "2 + 2 =", "answer": "4"},
        {"prompt": "Say yes.\n", "answer": ["yes", "Yes"]},
        {"prompt": "a", "answer": "\tb"},
    )
    found = read_tasks(path)
    assert [each.right for each in found] == [-1, -1, -1]
    assert [each.continuations() for each in found] == [[" 4"], ["yes", "Yes"], ["\tb"]]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1 is not JSON"),
        ([], "expected an object"),
        ({"prompt": 3, "answer": "x"}, "prompt is 3"),
        ({"prompt": "x"}, "answer is None"),
        ({"prompt": "x", "choices": ["a"], "answer": 0}, "2 to 64 texts"),
        ({"prompt": "x", "choices": ["a", ""], "answer": 0}, "2 to 64 texts"),
        ({"prompt": "x", "choices": ["a", "b"], "answer": 2}, "answer is 2"),
        ({"prompt": "x", "choices": ["a", "b"], "answer": True}, "answer is True"),
        ({"prompt": "x", "choices": ["a", "a"], "answer": "a"}, "answer is 'a'"),
        ({"question": "x"}, "unknown field 'question'"),
        ("", "no line has a task"),
    ],
)
def test_what_is_no_item_is_refused_by_its_line(tmp_path: Path, line: object, said: str) -> None:
    with pytest.raises(TextError, match=said):
        read_tasks(file_of(tmp_path, line))


def test_files_of_the_same_name_are_not_counted_as_one_task(tmp_path: Path) -> None:
    line = {"prompt": "x", "answer": "y"}
    one, other, third = (tmp_path / name for name in ("one", "other", "third"))
    for folder in (one, other, third):
        folder.mkdir()
    paths = [file_of(one, line), file_of(other, line)]
    with pytest.raises(TextError, match="both have an item '1' of capitals"):
        read_files(paths)
    again = file_of(third, {**line, "task": "another"})
    assert [each.task for each in read_files([paths[0], again])] == ["capitals", "another"]


def test_two_items_of_one_name_are_refused(tmp_path: Path) -> None:
    line = {"prompt": "x", "answer": "y", "id": "same"}
    with pytest.raises(TextError, match="line 2: there is an item 'same'"):
        read_tasks(file_of(tmp_path, line, line))
