"""Every test has its own state, config and runtime folders, and no network."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings

from engine.service.process import leave_room

# A timing is a benchmark, never an assertion: machines are shared.
hypothesis_settings.register_profile("untimed", deadline=None)
hypothesis_settings.load_profile("untimed")

if "PYTEST_XDIST_WORKER" in os.environ:
    # As many tests at a time as there are cores. Said outright: a worker inherits the environment
    # of the process that starts it, in which `leave_room` has set the number for one alone.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
leave_room()

IN_MEMORY = Path("/dev/shm")
ROOM = 4 << 30
if (
    "TMPDIR" not in os.environ
    and os.access(IN_MEMORY, os.W_OK)
    and shutil.disk_usage(IN_MEMORY).free > ROOM
):
    # A store waits for the disk after every commit: in memory there is nothing to wait for.
    os.environ["TMPDIR"] = str(IN_MEMORY)
    tempfile.tempdir = None
# Compiled once for all tests and their processes, which have cache folders of their own.
_KERNELS = Path(tempfile.gettempdir()) / f"qtui-tests-{os.getuid()}"
os.environ.setdefault("NUMBA_CACHE_DIR", str(_KERNELS))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SENTENCE = "the quick brown fox jumps over a lazy dog while seven boxers sleep"


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, but no more than four: tests of the interface mostly wait."""
    return min(4, (os.cpu_count() or 1) + 1)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Look for no garbage while tests are imported, nor ever again in what they import."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """XDG folders of this test alone; the runtime folder is short, as socket paths must be."""
    runtime = Path(tempfile.mkdtemp(prefix="q"))
    for variable, folder in (
        ("XDG_STATE_HOME", tmp_path / "state"),
        ("XDG_CONFIG_HOME", tmp_path / "config"),
        ("XDG_CACHE_HOME", tmp_path / "cache"),
        ("XDG_RUNTIME_DIR", runtime),
    ):
        folder.mkdir(exist_ok=True)
        monkeypatch.setenv(variable, str(folder))
    yield tmp_path
    shutil.rmtree(runtime, ignore_errors=True)
    _without_log_file()


def _without_log_file() -> None:
    """Undo what a command in this process set up: the next test's lines are not that session's."""
    logger = logging.getLogger("engine")
    for handler in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
        logger.removeHandler(handler)
        handler.close()
        logger.propagate = True


@pytest.fixture(scope="session")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of a few thousand bytes, varied enough for windows to differ."""
    words = SENTENCE.split()
    lines = [
        " ".join(words[(i * k) % len(words)] for k in range(1, 12)) + f" {i * i}."
        for i in range(400)
    ]
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def checked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are checked in this process: without the seconds that another one needs to begin."""
    from engine.export import load_check

    def asked(_loader: object, question: object, _go_on: object) -> str:
        if isinstance(question, load_check._Planned):
            return load_check.problem_of_plan(question)
        assert isinstance(question, load_check._Question)
        return load_check.problem_of(question)

    monkeypatch.setattr(load_check.Loader, "_asked", asked)
