"""What is remembered from run to run, and that forgetting never hurts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from qtui.user import remembered
from qtui.user.remembered import Remembered, recall, remember, remember_theme, remembered_path


def put(content: str) -> Path:
    path = remembered_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def test_nothing_is_remembered_at_first_and_nothing_made() -> None:
    assert recall() == (Remembered(), "")
    assert not remembered_path().exists()


def test_what_is_remembered_is_there_in_the_next_run(own_folders: Path) -> None:
    assert remembered_path() == own_folders / "state" / "qtui" / "interface.json"
    assert remember(pane=False, log_counts=False, folder="/tmp/tables") == ""
    assert remember_theme("ember", "full") == ""
    assert remember_theme("terminal", "ansi") == ""
    known, problem = recall()
    assert problem == ""
    assert known == Remembered(
        themes={"full": "ember", "ansi": "terminal"},
        pane=False,
        log_counts=False,
        folder="/tmp/tables",
    )


def test_another_interface_is_not_forgotten() -> None:
    remember(folder="/a")
    put(json.dumps({"folder": "/b", "pane": True, "of_tomorrow": 3}))
    assert remember(log_counts=False) == ""
    kept = json.loads(remembered_path().read_text())
    assert kept["folder"] == "/b"
    assert kept["pane"] is True
    assert kept["of_tomorrow"] == 3


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00\x01", '"text"'])
def test_a_broken_file_is_set_aside_and_told(content: str) -> None:
    path = put(content)
    known, problem = recall()
    assert known == Remembered()
    assert str(path) in problem
    assert "interface.json.broken" in problem
    assert path.with_suffix(".json.broken").read_text() == content
    assert recall() == (Remembered(), "")


def test_bytes_that_are_no_text_are_set_aside() -> None:
    put("").write_bytes(b'{"folder": "\xff\xfe"}')
    known, problem = recall()
    assert known == Remembered()
    assert "moved to interface.json.broken" in problem


def test_a_wrong_value_is_left_out_and_the_others_kept() -> None:
    put('{"pane": "perhaps", "folder": "/a"}')
    known, problem = recall()
    assert known == Remembered(folder="/a")
    assert "`pane`" in problem
    assert str(remembered_path()) in problem


def test_what_is_not_remembered_is_a_mistake_of_ours() -> None:
    with pytest.raises(TypeError, match="'colour'"):
        remember(colour="red")


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), OSError(30, "read-only")])
def test_where_nothing_can_be_written_it_is_told(
    monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(remembered.tempfile, "mkstemp", refuse)
    problem = remember(folder="/a")
    assert "cannot be written" in problem
    assert str(error.strerror) in problem
    assert recall() == (Remembered(), "")


def test_a_file_where_the_folder_should_be_is_told() -> None:
    remembered_path().parent.parent.mkdir(parents=True, exist_ok=True)
    remembered_path().parent.write_text("in the way")
    assert "cannot be written" in remember(folder="/a")
    assert "cannot be read" in recall()[1]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remember(folder="/a")

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        assert "no space left" in remember(folder="/b")
    assert recall()[0].folder == "/a"
    assert os.listdir(remembered_path().parent) == ["interface.json"]


def test_what_did_not_change_is_not_written() -> None:
    remember(folder="/a")
    before = remembered_path().stat().st_ino
    remember(folder="/a")
    assert remembered_path().stat().st_ino == before
