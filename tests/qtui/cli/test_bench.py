"""``qtui bench``: its document and its text."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runtimes import pretended

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = pretended.environment(tmp_path / "packages", cyllama=pretended.CYLLAMA)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    return str(file)


def test_the_document_has_a_line_for_every_batch_size(gguf: str, run: Run) -> None:
    words = ("--python", sys.executable)
    words += ("--batch", "1,2", "--prompt", "8", "--new", "4", "--repeats", "2", "--threads", "2")
    code, out, err = run("bench", gguf, *words, "--json", "-")
    assert code == 0, err
    document = json.loads(out)
    assert document["schema"] == "qtui.bench/1"
    assert document["artefact"] == gguf
    assert document["runtime"] == "llama.cpp"
    assert document["bytes"] == 4
    assert document["python"] == sys.executable
    assert document["threads"] == 2
    assert [each["batch"] for each in document["batches"]] == [1, 2]
    for each in document["batches"]:
        assert each["tokens_per_s"] > 0
        assert each["p90_ms"] >= each["p50_ms"] >= 0
        assert each["runs"] == 2


def test_a_missing_runtime_is_a_mistake_of_usage(
    gguf: str, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, err = run("bench", gguf)
    assert (code, out) == (2, "")
    assert "pip install llama-cpp-python" in err


def test_sizes_that_are_no_numbers_are_refused(gguf: str, run: Run) -> None:
    code, _, err = run("bench", gguf, "--batch", "1,x")
    assert code == 2
    assert "numbers separated by commas" in err
