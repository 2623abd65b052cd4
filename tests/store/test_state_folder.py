"""A state folder that cannot be written: who is refused, in which words, and who runs without."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import engine
from engine.client import in_process, start_engine
from engine.store import database, paths
from engine.store.facts import FactStore
from engine.store.past_sessions import past_sessions
from engine.store.paths import StateFolderError, check_state_folder, state_folder


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder that cannot be made: a file lies where it should be."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    return tmp_path / "file" / "qtui"


def test_it_is_named_with_the_variable_that_moves_it(nowhere: Path) -> None:
    for ask in (check_state_folder, state_folder, lambda: in_process("demo")):
        with pytest.raises(StateFolderError) as caught:
            ask()
        assert str(caught.value).startswith(f"the state folder {nowhere}, which keeps")
        assert "Not a directory" in str(caught.value)
        assert "set XDG_STATE_HOME to another folder" in str(caught.value)
    with pytest.raises(StateFolderError):
        start_engine("demo", 10)
    assert past_sessions() == []


def test_triage_runs_without_it(nowhere: Path) -> None:
    with pytest.warns(UserWarning, match=f"{nowhere}.*this run is not saved"):
        model = engine.open("demo", model=False)
    with model:
        assert len(model.triage(formats=["int8"]).rows()) == 37
    assert not nowhere.exists()


def test_commands_on_files_say_that_nothing_is_saved(nowhere: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qtui", "triage", "demo", "--formats", "int8"],
        capture_output=True, check=False, text=True,
    )  # fmt: skip
    assert done.returncode == 0
    assert f"warning: the state folder {nowhere}" in done.stderr
    assert "lm_head" in done.stdout


@pytest.mark.parametrize(
    ("number", "inodes", "said"),
    [
        (errno.ENOSPC, 5, "No space left on device"),
        (errno.ENOSPC, 0, "no inodes are left: too many files"),
        (errno.EDQUOT, 5, "Disk quota exceeded"),
        (errno.EROFS, 5, "Read-only file system"),
    ],
)
def test_the_reason_is_told(
    number: int, inodes: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    real = os.statvfs(tempfile.gettempdir())
    left = os.statvfs_result([*real[:7], inodes, *real[8:]])
    monkeypatch.setattr(paths.tempfile, "TemporaryFile", fails)
    monkeypatch.setattr(paths.os, "statvfs", lambda _: left)
    with pytest.raises(StateFolderError, match=f"written .{said}."):
        check_state_folder()


def test_a_store_that_cannot_be_written_is_no_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FactStore(tmp_path / "facts.sqlite").close()
    connect = sqlite3.connect

    def protected(path: Path, **given: object) -> sqlite3.Connection:
        return connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, **given)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(database.sqlite3, "connect", protected)
    with pytest.raises(StateFolderError) as caught:
        FactStore(tmp_path / "facts.sqlite")
    assert "readonly" in str(caught.value)
    assert "XDG_STATE_HOME" in str(caught.value)
    assert "move the file away" not in str(caught.value)
