"""What was written is loaded by plain transformers before it counts as done."""

from __future__ import annotations

import signal
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMultimodalLM

from engine.checkpoint import list_layers, open_checkpoint
from engine.errors import EngineError
from engine.export import folder_writer, load_check
from engine.export.compressed import writer
from engine.export.compressed.writer import export_checkpoint
from engine.export.load_check import (
    Loader,
    NotLoadable,
    _Planned,
    _Question,
    digest,
    problem_of,
    problem_of_plan,
)
from engine.export.writer import Request
from engine.formats.grammar import parse_format
from engine.model.config import auto_class
from engine.quant.quantize import dequantized
from engine.workers import child
from tests import tiny, wrappers

LAYER = "model.layers.1.mlp.up_proj"


def asked(source: Path, out: Path, *layers: str) -> Request:
    checkpoint = open_checkpoint(source)
    return Request(checkpoint=checkpoint, recipe=dict.fromkeys(layers, "int4-g32"), out=out)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An export that loads, and the digest of what its layer is to hold."""
    folder = tmp_path_factory.mktemp("load")
    source = tiny.build("llama", folder / "in")
    export_checkpoint(asked(source, folder / "out", LAYER))
    weight = load_file(source / "model.safetensors")[f"{LAYER}.weight"]
    held = dequantized(weight, parse_format("int4-g32"), torch.float16, LAYER)
    return folder / "out", digest(held)


def question(written: tuple[Path, str], folder: Path | None = None) -> _Question:
    return _Question(str(folder or written[0]), {LAYER: written[1]}, False)


def test_what_is_read_as_it_was_measured_has_no_problem(written: tuple[Path, str]) -> None:
    assert problem_of(question(written)) == ""


def test_another_code_is_noticed(written: tuple[Path, str], tmp_path: Path) -> None:
    tensors = load_file(written[0] / "model.safetensors")
    tensors[f"{LAYER}.weight_packed"][3, 2] ^= 1
    problem = problem_of(question(written, copied(written[0], tmp_path / "other", tensors)))
    assert "other weights" in problem
    assert LAYER in problem


def test_a_tensor_that_nothing_fills_is_noticed(written: tuple[Path, str], tmp_path: Path) -> None:
    tensors = load_file(written[0] / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    problem = problem_of(question(written, copied(written[0], tmp_path / "less", tensors)))
    assert "model.layers.0.mlp.up_proj.weight from no tensor" in problem


def copied(folder: Path, to: Path, tensors: dict[str, torch.Tensor]) -> Path:
    to.mkdir()
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (to / file).write_bytes((folder / file).read_bytes())
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return to


def test_what_nothing_would_load_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its loader reads the weight of every linear module to initialise it.
    source = tiny.build("falcon", tmp_path / "in")
    request = asked(source, tmp_path / "out", "transformer.h.1.mlp.dense_h_to_4h")
    before = set(tmp_path.iterdir())
    written: list[object] = []
    monkeypatch.setattr(folder_writer, "write_shards", lambda *given: written.append(given))
    monkeypatch.setattr(Loader, "_asked", in_this_process)
    for refused in (writer.WRITER.check, export_checkpoint):
        with pytest.raises(NotLoadable, match=r"weight of a module .* nothing was written"):
            refused(replace(request, check=True))
    assert set(tmp_path.iterdir()) == before
    assert not written
    monkeypatch.undo()
    export_checkpoint(request)
    assert (tmp_path / "out" / "config.json").exists()


def test_what_is_read_otherwise_is_taken_away(
    tmp_path: Path, written: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_writer, "digest", lambda _weight: "other")
    monkeypatch.setattr(Loader, "_asked", in_this_process)
    source, before = written[0].parent / "in", set(tmp_path.iterdir())
    with pytest.raises(NotLoadable, match=r"other weights than were measured.*nothing is left"):
        export_checkpoint(replace(asked(source, tmp_path / "out", LAYER), check=True))
    assert set(tmp_path.iterdir()) == before


def in_this_process(_loader: object, question: _Planned | _Question, _go_on: object) -> str:
    if isinstance(question, _Planned):
        return problem_of_plan(question)
    return problem_of(question)


@pytest.mark.parametrize("kind", ["qwen2_vl", "mistral3"])
def test_a_model_that_sees_beside_its_language_is_loaded_whole(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks: list[str] = []

    def noting(loader: object, question: _Planned | _Question, go_on: object) -> str:
        asks.append(type(question).__name__)
        return in_this_process(loader, question, go_on)

    monkeypatch.setattr(Loader, "_asked", noting)
    source = wrappers.build(kind, tmp_path / "in")
    layer = next(row.name for row in list_layers(open_checkpoint(source)) if row.role == "linear")
    export_checkpoint(replace(asked(source, tmp_path / "out", layer), check=True))
    assert asks == ["_Planned", "_Question"]
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert auto_class(config) is AutoModelForMultimodalLM


def test_a_process_that_does_not_start_is_not_a_folder_that_cannot_be_written(
    written: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child.sys, "executable", "/nowhere/python")
    with pytest.raises(EngineError, match=r"does not start \(/nowhere/python.*--no-check"):
        Loader().check_loads(written[0], {}, lambda: None)


def test_giving_up_ends_the_other_process(
    written: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class GivenUp(Exception):
        pass

    def give_up() -> None:
        raise GivenUp

    monkeypatch.setattr(load_check, "WAIT", 0.01)
    with closing(Loader()) as loader:
        with pytest.raises(GivenUp):
            loader.check_loads(written[0], {}, give_up)
        assert loader._running is not None
        process = loader._running.process
    assert process.returncode == -signal.SIGKILL
    assert loader._running is None


def test_one_process_answers_every_question_however_long_it_is(
    written: tuple[Path, str],
) -> None:
    many = {f"no.such.layer.{i}": written[1] for i in range(4000)}
    with closing(Loader()) as loader:
        loader.check_loads(written[0], {LAYER: written[1]}, lambda: None)
        assert loader._running is not None
        first = loader._running.process
        with pytest.raises(NotLoadable, match="other weights than were measured"):
            loader.check_loads(written[0], many, lambda: None)
        assert loader._running.process is first
        first.kill()  # between two questions: that is no fault of the export
        first.wait()
        loader.check_loads(written[0], {LAYER: written[1]}, lambda: None)
        assert loader._running.process is not first


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import os; os.kill(os.getpid(), 9)", r"was ended \(Killed\); nothing is left"),
        ("print('what()'); import os; os.abort()", r"was ended \(Aborted\): what\(\)"),
        ("import os; os.kill(os.getpid(), 40)", r"was ended \(Real-time signal 6\)"),
        ("raise ImportError('no such library')", "ImportError: no such library"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("print('{}')\nwhile True: input()", "EOFError"),
    ],
)
def test_a_process_that_ends_instead_of_answering_says_why(
    program: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it prints is no answer, and it has no input to read."""
    python = tmp_path / "python"
    script = tmp_path / "script.py"
    script.write_text(program)
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -u {script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(child.sys, "executable", str(python))
    with closing(Loader()) as loader, pytest.raises(NotLoadable, match=why):
        loader.check_loads(tmp_path, {}, lambda: None)
