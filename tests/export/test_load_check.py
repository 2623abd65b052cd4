"""What was written is loaded by plain transformers before it counts as done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint import open_checkpoint
from engine.export import load_check
from engine.export.compressed.writer import export_checkpoint
from engine.export.load_check import NotLoadable, _Question, digest, problem_of
from engine.export.writer import Request
from engine.formats.grammar import parse_format
from engine.quant.quantize import dequantized
from tests import tiny

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


def test_a_checkpoint_that_does_not_load_is_taken_away_unless_nobody_asked(tmp_path: Path) -> None:
    # transformers 5 merges experts on load, and with others stored as codes it drops plain ones.
    source = tiny.build("qwen3_moe", tmp_path / "in")
    request = asked(source, tmp_path / "out", "model.layers.0.self_attn.o_proj")
    before = set(tmp_path.iterdir())
    with pytest.raises(NotLoadable, match="cannot merge plain experts"):
        export_checkpoint(replace(request, check=True))
    assert set(tmp_path.iterdir()) == before
    export_checkpoint(request)
    assert (tmp_path / "out" / "config.json").exists()


def test_giving_up_ends_the_other_process(
    written: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class GivenUp(Exception):
        pass

    def give_up() -> None:
        raise GivenUp

    monkeypatch.setattr(load_check, "WAIT", 0.01)
    with pytest.raises(GivenUp):
        load_check.check_loads(written[0], {}, give_up)
