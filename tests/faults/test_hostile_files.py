"""Every hostile trait: refused in a sentence with exit status 3, or harmless; nothing is run.

The command line is called as a shell would call it, in this process. An audit hook sees what is
opened and started meanwhile.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from engine import client
from qtui.cli import main
from tests import tiny
from tests.faults.traits import TRAITS, Trait

SECONDS = 1.0
"""Processor time that a checkpoint may take to be refused."""
MARK = "executed"
"""What code in a checkpoint would make."""


@dataclass
class Audit:
    """What a run opened, and what it started."""

    watching: bool = False
    opened: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        if event == "open" and isinstance(given[0], str | bytes):
            self.opened.append(os.fsdecode(given[0]))
        elif event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork"):
            self.started.append(f"{event} {given[0]!r}")


AUDIT = Audit()
_hooked: list[bool] = []


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, prose: Path) -> Path:
    """A tiny checkpoint, once opened so that everything is imported."""
    return tiny.build("llama", tmp_path_factory.mktemp("sound") / "model", num_hidden_layers=2)


@pytest.fixture
def audit() -> Iterator[Audit]:
    if not _hooked:  # a hook can never be removed
        sys.addaudithook(AUDIT)
        _hooked.append(True)
    AUDIT.opened, AUDIT.started = [], []
    yield AUDIT
    AUDIT.watching = False


@dataclass
class Ended:
    """How a command ended."""

    code: int
    said: str
    printed: str
    seconds: float
    """Of processor time."""


def run(
    folder: Path, trait: Trait, prose: Path, audit: Audit, capsys: pytest.CaptureFixture[str]
) -> Ended:
    """Run a trait's command on a folder."""
    model = str(folder / trait.model)
    words = ["triage", model, "--formats", "int4-g32"]
    if trait.command == "eval":
        words = ["eval", model, "--format", "int4-g32", "--text", str(prose)]
        words += ["--tokens", "64", "--seq-len", "32"]
    capsys.readouterr()
    begun, audit.watching = time.process_time(), True
    with pytest.raises(SystemExit) as end:
        main(words)
    audit.watching = False
    taken = time.process_time() - begun
    printed, said = capsys.readouterr()
    return Ended(int(end.value.code or 0), said, printed, taken)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", TRAITS)
def test_a_hostile_checkpoint_is_refused_in_a_sentence_and_runs_nothing(
    name: str,
    sound: Path,
    prose: Path,
    audit: Audit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(client, "own_process", lambda source: None)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    trait, folder = TRAITS[name], tmp_path / "model"
    shutil.copytree(sound, folder)
    trait.build(folder)
    ended = run(folder, trait, prose, audit, capsys)
    assert "Traceback" not in ended.said + ended.printed
    assert not unprintable(ended.said + ended.printed)
    if trait.harmless:
        assert ended.code == 0, ended.said
        assert trait.prints in ended.printed
    else:
        assert ended.code == 3, ended.said
        for words in trait.says:
            assert words in ended.said
        assert re.search(trait.told, ended.said), ended.said
        assert len(ended.said) < 2000
    assert ended.seconds < SECONDS
    assert not audit.started
    assert not list(tmp_path.rglob(MARK))
    assert not [path for path in audit.opened if outside(path, tmp_path, prose)]


def unprintable(text: str) -> list[str]:
    """Characters that a terminal would obey."""
    return [c for c in text if not (c.isprintable() or c == "\n")]


def outside(path: str, folder: Path, prose: Path) -> bool:
    """Whether a path is neither the checkpoint's nor a library's nor the program's own."""
    real = Path(os.path.abspath(path))
    homes = [
        folder,
        prose.parent,
        Path(__file__).parents[2],
        Path(sys.prefix),
        Path(sys.base_prefix),
    ]
    homes += [Path(found) for found in (*sysconfig.get_paths().values(), *filter(None, sys.path))]
    homes += [
        Path(os.environ["NUMBA_CACHE_DIR"]),
        Path("/proc"),
        Path("/sys"),
        Path(os.environ["XDG_RUNTIME_DIR"]),
    ]
    homes += [Path("/usr/lib"), Path("/usr/share/zoneinfo"), Path("/dev/null")]
    return not any(real.is_relative_to(home) for home in homes)
