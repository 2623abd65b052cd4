"""Folders and files that are something else than they seem: which, and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from engine.checkpoint import list_layers, open_checkpoint, remarks
from engine.errors import CheckpointError
from tests import tiny

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("sound") / "llama", shards=2)


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    return str(caught.value)


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_leads_to_its_base_model(with_config: bool, model: Path) -> None:
    for file in model.glob("model*"):
        file.unlink()
    if not with_config:
        (model / "config.json").unlink()
    (model / "adapter_model.safetensors").write_bytes(b"")
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    assert "is an adapter (LoRA or another of PEFT) of org/base" in refusal(model)
    (model / "adapter_config.json").write_text("{")
    assert "of a model that it does not name" in refusal(model)


def test_an_adapter_beside_a_model_is_a_remark(model: Path) -> None:
    (model / "adapter_config.json").write_text("{}")
    checkpoint = open_checkpoint(model)
    (said,) = remarks(checkpoint, list_layers(checkpoint))
    assert "adapter_config.json is not applied" in said


@pytest.mark.parametrize("with_config", [False, True])
@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("consolidated.safetensors", "Mistral's or Meta's own format"),
        ("consolidated.00.pth", "Mistral's or Meta's own format"),
        ("params.json", "Mistral's or Meta's own format"),
        ("model.gguf", "GGUF files"),
        ("tf_model.h5", "TensorFlow"),
        ("flax_model.msgpack", "Flax"),
        ("model.onnx", "ONNX"),
        ("model_index.json", "diffusers"),
    ],
)
def test_other_formats_are_named(with_config: bool, file: str, said: str, model: Path) -> None:
    for each in model.glob("model*"):
        each.unlink()
    if not with_config:
        (model / "config.json").unlink()
    (model / file).write_bytes(b"")
    assert said in refusal(model)


def test_other_formats_beside_a_checkpoint_do_not_matter(model: Path) -> None:
    for file in ("consolidated.safetensors", "params.json", "model.onnx"):
        (model / file).write_bytes(b"")
    assert open_checkpoint(model).tensors


def test_pointers_of_git_lfs_are_named(model: Path) -> None:
    shard = min(file.name for file in model.glob("*.safetensors"))
    for file in (shard, "model.safetensors.index.json", "config.json"):
        (model / file).write_text(POINTER)
        said = refusal(model)
        assert f"{model / file} is a pointer of Git LFS" in said
        assert "git lfs pull" in said


def test_pointers_to_pickles_and_tokenizers_too(model: Path) -> None:
    from engine.model.load import load_tokenizer

    for file in model.glob("model*"):
        file.unlink()
    (model / "pytorch_model.bin").write_text(POINTER)
    assert "pytorch_model.bin is a pointer of Git LFS" in refusal(model)
    (model / "tokenizer.json").write_text(POINTER)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is a pointer of Git LFS"):
        load_tokenizer(model)


def snapshot(model: Path, hub: Path, blobs: Path) -> Path:
    """The folder of a model in the hub's cache, whose ``blobs`` are a link to another disk."""
    home = hub / "models--org--tiny"
    folder = home / "snapshots" / "abc"
    folder.mkdir(parents=True)
    blobs.mkdir()
    (home / "blobs").symlink_to(blobs)
    for number, file in enumerate(sorted(model.iterdir())):
        shutil.copy(file, blobs / str(number))
        (folder / file.name).symlink_to(f"../../blobs/{number}")
    return folder


def test_a_snapshot_may_link_into_its_store_on_another_disk(model: Path, tmp_path: Path) -> None:
    folder = snapshot(model, tmp_path / "hub", tmp_path / "disk")
    assert open_checkpoint(folder).name == "org/tiny"


def test_links_beyond_the_store_are_followed_only_when_allowed(model: Path, tmp_path: Path) -> None:
    folder = snapshot(model, tmp_path / "hub", tmp_path / "disk")
    shared = tmp_path / "shared"
    shutil.move(tmp_path / "disk" / "0", shared)
    (tmp_path / "disk" / "0").symlink_to(shared)
    said = refusal(folder)
    assert f"links to {shared}" in said
    assert "--follow-links" in said
    followed = open_checkpoint(folder, follow_links=True)
    assert followed.fingerprint == open_checkpoint(model).fingerprint


def test_the_option_reaches_every_reader(model: Path, tmp_path: Path) -> None:
    """Weights linked file by file from a shared disk: read, loaded, and exported."""
    from engine.model.load import load_network
    from tests.export.exporting import export_checkpoint

    folder = tmp_path / "links"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).symlink_to(file)
    with pytest.raises(CheckpointError, match="--follow-links"):
        load_network(folder, device="cpu")
    network = load_network(folder, device="cpu", follow_links=True)
    name = "model.layers.0.mlp.up_proj"
    checkpoint = open_checkpoint(folder, follow_links=True)
    assert torch.equal(network.weight(name), checkpoint.read(f"{name}.weight"))
    export_checkpoint(checkpoint, {name: "int8"}, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
