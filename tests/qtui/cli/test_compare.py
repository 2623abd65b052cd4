"""``qtui compare``: its document and its text."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.measure.evaluation.logits_file import write_chunk, write_header
from engine.texts.windows import Windows
from tests import tiny

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An original, and a copy whose weights were halved in one layer and cut to steps in others."""
    folder = tmp_path_factory.mktemp("compare")
    source, finished = tiny.build("llama", folder / "original"), folder / "finished"
    shutil.copytree(source, finished)
    (file,) = finished.glob("*.safetensors")
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if ".mlp." in name:
            tensors[name] = ((tensor.float() * 64).round() / 64).to(tensor.dtype)
    other = "model.layers.1.self_attn.o_proj.weight"
    tensors[other] = tensors["model.layers.2.self_attn.o_proj.weight"].clone()
    save_file(tensors, file, {"format": "pt"})
    return source, finished


def asked(prose: Path, *further: str) -> list[str]:
    return ["--text", str(prose), "--tokens", "256", "--seq-len", "32", *further]


def test_the_document_says_what_each_is_worth_and_what_is_wrong(
    checkpoints: tuple[Path, Path], prose: Path, run: Run
) -> None:
    source, finished = map(str, checkpoints)
    given = asked(prose, "--restore", "1", "--json", "-")
    code, out, err = run("compare", source, finished, *given)
    assert code == 0, err
    document = json.loads(out)
    assert document["schema"] == "qtui.compare/1"
    assert document["baseline"]["nll"] > 0
    (artefact,) = document["artefacts"]
    assert artefact["path"] == finished
    assert artefact["kl"] > 0
    assert artefact["nll"] == pytest.approx(document["baseline"]["nll"] + artefact["dnll"])
    kinds = {layer["name"].split(".", 2)[-1]: layer["rounding"] for layer in artefact["layers"]}
    assert kinds["1.self_attn.o_proj"] == "other"
    assert kinds["0.self_attn.q_proj"] == "same"
    assert kinds["2.mlp.down_proj"] == "nearest"
    (wrong,) = [each for each in artefact["findings"] if each["severity"] == "alert"]
    assert wrong["layer"] == "model.layers.1.self_attn.o_proj"
    restored = [layer["name"] for layer in artefact["layers"] if "sensitivity" in layer]
    assert restored == ["model.layers.1.self_attn.o_proj"]


def test_files_alone_are_compared_without_a_model(checkpoints: tuple[Path, Path], run: Run) -> None:
    source, finished = map(str, checkpoints)
    code, out, err = run("compare", source, finished, "--weights")
    assert code == 0, err
    assert "from other weights" in out
    assert "alert: model.layers.1.self_attn.o_proj" in out
    assert "KL·10³" not in out, "no model was run"
    assert "PPL 1" not in out


def test_markdown_has_the_same(checkpoints: tuple[Path, Path], run: Run) -> None:
    source, finished = map(str, checkpoints)
    code, out, err = run("compare", source, finished, "--weights", "--markdown")
    assert code == 0, err
    assert out.startswith("# original: finished checkpoints\n")
    assert "| finished |" in out
    assert "- alert: model.layers.1.self\\_attn.o\\_proj errs by" in out


def test_what_cannot_be_compared_is_said(
    checkpoints: tuple[Path, Path], tmp_path: Path, prose: Path, run: Run
) -> None:
    source, finished = map(str, checkpoints)
    code, _, err = run("compare", source, finished, "--weights", "--restore", "2")
    assert code == 2
    assert "--weights" in err
    code, _, err = run("compare", source, str(tmp_path / "nowhere"), *asked(prose))
    assert code == 3
    assert "nowhere" in err


def test_without_an_original_the_files_tell_what_they_can(
    checkpoints: tuple[Path, Path], tmp_path: Path, run: Run
) -> None:
    source, finished = map(str, checkpoints)
    gptq = str(tmp_path / "gptq")
    code, _, err = run("export", source, "--format", "int4-g32", "--to", "gptq", "-o", gptq)
    assert code == 0, err
    code, out, err = run("compare", "-", gptq, finished, "--json", "-")
    assert code == 0, err
    document = json.loads(out)
    assert not {"reference", "protocol", "baseline"} & document.keys()
    first, second = document["artefacts"]
    assert first["layout"] == "gptq"
    assert first["findings"] == second["findings"] == []
    layers = {layer["name"]: layer for layer in first["layers"]}
    layer = layers["model.layers.0.mlp.up_proj"]
    assert layer["format"] == "int4-g32"
    assert layer["stored"]["levels"] == 16
    assert layer["stored"]["scale_min"] > 0
    assert not {"errors", "rounding", "steps", "folded"} & layer.keys()
    assert "stored" not in layers["lm_head"]
    code, out, err = run("compare", "-", gptq)
    assert code == 0, err
    assert "no original" in out
    assert "zero points" in out
    assert "PPL" not in out  # nothing was scored
    code, out, err = run("compare", "-", finished)
    assert code == 0, err
    assert "none with codes: only its original tells what was changed" in out
    code, out, err = run("compare", "-", gptq, "--markdown")
    assert code == 0, err
    assert "# Finished checkpoints" in out


def test_a_logits_file_is_written_and_read(
    checkpoints: tuple[Path, Path], tmp_path: Path, prose: Path, run: Run
) -> None:
    source, finished = map(str, checkpoints)
    file = str(tmp_path / "base.logits")
    code, out, err = run("compare", source, finished, *asked(prose, "--save-logits", file))
    assert code == 0, err
    assert "Mean KLD" in out
    assert "99.9% Δp" in out
    given = asked(prose, "--logits", file, "--json", "-")
    code, out, err = run("compare", "-", finished, *given)
    assert code == 0, err
    document = json.loads(out)
    assert document["logits"] == file
    (artefact,) = document["artefacts"]
    assert artefact["divergence"]["kld"]["mean"] > 0
    assert 0 < artefact["divergence"]["same_top"] <= 1
    assert "kl" not in artefact
    code, _, err = run("compare", source, finished, "--logits", file, "--save-logits", file)
    assert code == 2
    whole = Path(file).read_bytes()
    vocabulary = struct.unpack_from("<i", whole, 12)[0]
    fewer = io.BytesIO()
    windows = Windows(torch.zeros(1, 8, dtype=torch.int64), 3)
    write_header(fewer, windows, vocabulary // 2)
    write_chunk(fewer, [torch.zeros(3, vocabulary // 2)])
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "short").write_bytes(whole[:-2])
    (tmp_path / "other").write_bytes(fewer.getvalue())
    for name, said in (
        ("short", "its header says"), ("other", "not of the same model"), ("pipe", "no regular"),
    ):  # fmt: skip
        code, _, err = run("compare", "-", finished, "--logits", str(tmp_path / name))
        assert (code, err.count("qtui:")) == (3, 1), err
        assert said in err
    code, _, err = run("compare", "-", finished, "--logits", str(tmp_path / "none"))
    assert code == 3
    assert "none" in err
