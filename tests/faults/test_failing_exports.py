"""Each write of an export fails, or is the last one: nothing is left that could pass for whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.export.folder import atomic_folder
from tests.faults.shim import compiler, failing_writes
from tests.faults.table import put


@compiler
@pytest.mark.parametrize("step", [31, pytest.param(1, marks=pytest.mark.soak)])
def test_every_write_of_an_export(step: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.failing_exports", str(tmp_path), str(step)],
        env={**os.environ, "LD_PRELOAD": str(failing_writes(tmp_path)), "OMP_NUM_THREADS": "1"},
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == {}
    assert found["runs"] > 500 / step
    if step == 1:
        put("export fails or is killed", f"every write, {found['runs']} runs: 0")


def left_by(process: int, folder: Path, name: str, suffix: str) -> Path:
    """What an export to a name leaves when it is killed."""
    left = folder / f".{name}.{process}.{suffix}"
    left.mkdir()
    (left / "config.json").write_text(suffix)
    return left


def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_folder_that_a_killed_export_was_about_to_replace_comes_back(tmp_path: Path) -> None:
    folder, process = tmp_path / "folder", dead()
    folder.mkdir()
    left_by(process, folder, "out", "old")
    left_by(process, folder, "out", "partial")
    other = left_by(process, folder, "other", "old")
    running = left_by(os.getppid(), folder, "out", "partial")
    out = folder / "out"
    with pytest.raises(RuntimeError), atomic_folder(out):
        raise RuntimeError
    assert (out / "config.json").read_text() == "old"
    assert sorted(folder.iterdir()) == sorted([out, other, running])


def test_a_name_as_long_as_a_name_can_be_has_a_temporary_one(tmp_path: Path) -> None:
    out = tmp_path / ("\N{SNOWMAN}" * 85)
    with atomic_folder(out) as folder:
        (folder / "config.json").touch()
    assert [file.name for file in out.iterdir()] == ["config.json"]


def test_what_exports_to_names_that_begin_alike_left_is_theirs(tmp_path: Path) -> None:
    """``model.v2`` is written by this process, and another export to it was killed."""
    with atomic_folder(tmp_path / "model.v2") as theirs:
        (theirs / "weights").touch()
        old = left_by(dead(), tmp_path, "model.v2", "old")
        with atomic_folder(tmp_path / "model") as folder:
            assert not (tmp_path / "model").exists()
            (folder / "mine").touch()
        assert old.is_dir()
    assert [file.name for file in (tmp_path / "model").iterdir()] == ["mine"]
    assert [file.name for file in (tmp_path / "model.v2").iterdir()] == ["weights"]
