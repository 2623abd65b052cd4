"""The check of a GPU, on a processor: it passes, and a figure that is 1% off fails it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import check, running
from tests.gpu.rows import Recorder, Row, table
from tests.gpu.steps import STEPS, Options, Step

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(1500)
def test_it_passes_on_a_processor_and_each_step_fails_by_one_percent(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.gpu.check", "--tiny", "--device", "cpu", "--out",
         str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert not found["failures"]
    rows = [Row(**row) for row in found["rows"]]
    assert (tmp_path / "gpu.md").read_text().endswith(table(
        row for row in rows if row.step != "versions") + "\n")  # fmt: skip
    for step in STEPS:
        own = [row for row in rows if row.step == step.name and row.checked and not row.most]
        assert own, f"{step.name} checks no figure"
        for row in own:
            for factor in (0.99, 1.01):
                assert not dataclasses.replace(row, found=row.found * factor).ok, row.line


class Told:
    """Takes rows."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def __call__(self, row: Row) -> None:
        self.rows.append(row)


def _step(monkeypatch: pytest.MonkeyPatch, body: str) -> Step:
    """A step with this body; a forked process has it too."""
    import types

    module = types.ModuleType("tests.gpu.made_up")
    exec(f"def run(options, figures):\n    {body}", module.__dict__)
    monkeypatch.setitem(sys.modules, "tests.gpu.made_up", module)
    return Step("made_up", 60, "")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("figures.same('a', 1.0, 1.0)", ""),
        ("figures.same('a', 1.0, 1.0); raise RuntimeError('CUDA error: an illegal memory access')",
         "RuntimeError: CUDA error: an illegal memory access"),
        ("figures.same('a', 1.0, 1.0); import os; os.abort()", "SIGABRT"),
        ("figures.same('a', 1.0, 1.0); import threading; threading.Event().wait()",
         "stopped after its 1 s"),
    ],
)  # fmt: skip
def test_a_step_that_ends_badly_leaves_its_rows_and_a_reason(
    body: str, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(running, "TINY_SECONDS", 1 if "stopped" in why else 60)
    told = Told()
    options = Options("cpu", True, tmp_path, tmp_path)
    assert why in running.run_step(_step(monkeypatch, body), options, told)
    if not why:
        assert running.run_step(_step(monkeypatch, body), options, told) == ""
    assert told.rows[0].ok


def test_a_wrong_figure_or_a_failed_step_is_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, "preload", lambda: None)
    for body, status in (
        ("figures.same('a', 1.0, 1.0)", 0),
        ("figures.same('a', 1.01, 1.0, 5e-3)", 1),
        ("raise ValueError('no')", 1),
    ):
        monkeypatch.setattr(check, "STEPS", (_step(monkeypatch, body),))
        given = ["--device", "cpu", "--tiny", "--out", str(tmp_path)]
        assert check.main(given) == status
        assert "made_up" in capsys.readouterr().out


def test_the_furthest_figure_is_shown_and_a_missing_one_is_wrong() -> None:
    told = Told()
    figures = Recorder("s", told)
    figures.worst("w", {"a": 1.0, "b": 2.1}, {"a": 1.0, "b": 2.0}, 0.1)
    figures.worst("w", {"a": 1.0}, {"a": 1.0, "b": 2.0}, 0.1)
    figures.worst("w", {"a": float("nan"), "b": 2.0}, {"a": 1.0, "b": 2.0}, 0.1)
    assert [(row.ok, row.found) for row in told.rows[:1]] == [(True, 2.1)]
    assert [row.ok for row in told.rows[1:]] == [False, False]
