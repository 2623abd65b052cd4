"""Opening a folder, and reading its tensors."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from engine.checkpoint import checkpoint as module
from engine.checkpoint import open_checkpoint
from engine.checkpoint.headers import DTYPES
from engine.errors import CheckpointError

CONFIG = {"model_type": "llama", "num_hidden_layers": 1}


def folder_of(folder: Path, tensors: dict[str, torch.Tensor], config: Any = CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def sharded(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file({"a": torch.arange(4.0), "b": torch.ones(2, 3)}, folder / "one.safetensors")
    save_file({"c": torch.zeros(5, dtype=torch.bfloat16)}, folder / "two.safetensors")
    write_index(folder, {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"})
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    return str(caught.value)


# what can be read


def test_every_dtype_reads_as_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    tensors = {}
    for name, width in DTYPES.values():
        raw = torch.randint(0, 2 if name == "bool" else 256, (12 * width,), dtype=torch.uint8)
        tensors[name] = raw.view(getattr(torch, name)).reshape(3, 4).clone()
    tensors.pop("float8_e8m0fnu")  # their torch writer does not know it
    tensors |= {"empty": torch.empty(0, 4), "scalar": torch.tensor(2.5)}
    folder = folder_of(tmp_path, tensors)
    found = open_checkpoint(folder)
    with safe_open(folder / "model.safetensors", "pt") as reference:
        assert set(reference.keys()) == set(found.tensors)
        for name in reference.keys():  # noqa: SIM118
            theirs, ours = reference.get_tensor(name), found.read(name)
            assert ours.dtype == theirs.dtype
            assert ours.shape == theirs.shape
            assert torch.equal(bits(ours), bits(theirs)), name
            if ours.ndim:
                end = min(2, len(ours))
                assert torch.equal(
                    bits(found.read_rows(name, 1 * (end > 1), end)),
                    bits(theirs[1 * (end > 1) : end]),
                ), name


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def test_shards_make_one_table(tmp_path: Path) -> None:
    found = open_checkpoint(sharded(tmp_path))
    assert list(found.tensors) == ["a", "b", "c"]
    assert found.parameters == 15
    assert found.bytes == 10 * 4 + 5 * 2
    assert found.dtype == "float32"
    assert torch.equal(found.read("b"), torch.ones(2, 3))
    assert found.read("c").dtype == torch.bfloat16


def test_parameters_leave_out_the_masks_of_old_files(tmp_path: Path) -> None:
    tensors = {"h.0.attn.c_attn.weight": torch.ones(4, 12), "h.0.attn.c_attn.bias": torch.ones(12)}
    buffers = {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    assert open_checkpoint(folder_of(tmp_path, {**tensors, **buffers})).parameters == 60


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights_are_read_when_safe(zipped: bool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    tensors = {"a": torch.arange(6.0).reshape(3, 2), "b": torch.ones(4).half()}
    torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    found = open_checkpoint(tmp_path)
    assert found.pickled
    assert found.tensors["b"].dtype == "float16"
    assert found.bytes == 32
    assert torch.equal(found.read("a"), tensors["a"])
    assert torch.equal(found.read_rows("a", 1, 3), tensors["a"][1:])


def test_safetensors_are_preferred_to_pickles(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"a": torch.ones(2)})
    torch.save({"b": torch.ones(2)}, folder / "pytorch_model.bin")
    assert list(open_checkpoint(folder).tensors) == ["a"]


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["QTUI_TEST_MARK"],)


def test_a_pickle_that_would_run_code_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "ran"
    monkeypatch.setenv("QTUI_TEST_MARK", str(mark))
    (tmp_path / "config.json").write_text("{}")
    torch.save({"a": Runs()}, tmp_path / "pytorch_model.bin")
    said = refusal(tmp_path)
    assert "pytorch_model.bin" in said
    assert "run code" in said
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 but no archive", b"noise" * 20])
def test_a_damaged_pickle_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    assert "pytorch_model.bin" in refusal(tmp_path)


def test_reading_holds_one_tensor_at_most(tmp_path: Path) -> None:
    big = 48 * 2**20
    header = {
        name: {
            "dtype": "F16",
            "shape": [big // 8192, 4096],
            "data_offsets": [i * big, (i + 1) * big],
        }
        for i, name in enumerate("abcd")
    }
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + 4 * big)
    (tmp_path / "config.json").write_text("{}")
    found = open_checkpoint(tmp_path)
    process = psutil.Process()
    before, most = process.memory_info().rss, 0
    for name in found.tensors:
        tensor = found.read(name)
        most = max(most, process.memory_info().rss - before)
        assert tensor.numel() == big // 2
        del tensor
    assert most < 1.5 * big
    before = process.memory_info().rss
    rows = found.read_rows("d", 5, 9)
    assert rows.shape == (4, 4096)
    assert process.memory_info().rss - before < big / 2


def test_opening_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from engine.checkpoint import open_checkpoint\n"
        f"open_checkpoint(Path({str(folder)!r})).fingerprint\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, timeout=60)


# names and fingerprints


def test_a_folder_of_the_hub_cache_opens_through_its_links(tmp_path: Path) -> None:
    cache = tmp_path / "models--owner--model"
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    sharded(snapshot)
    for file in list(snapshot.iterdir()):
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.move(file, blob)
        file.symlink_to(Path("..") / ".." / "blobs" / blob.name)
    found = open_checkpoint(snapshot)
    assert found.name == "owner/model"
    assert torch.equal(found.read("a"), torch.arange(4.0))


def test_the_fingerprint_does_not_know_where_the_folder_is(tmp_path: Path) -> None:
    one = open_checkpoint(sharded(tmp_path / "one"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    two = open_checkpoint(tmp_path / "two")
    assert one.fingerprint == two.fingerprint
    assert len(one.fingerprint) == 64
    assert one.name == "one"


@pytest.mark.parametrize("what", ["config", "weight", "shard name"])
def test_the_fingerprint_knows_every_change(what: str, tmp_path: Path) -> None:
    before = open_checkpoint(sharded(tmp_path)).fingerprint
    if what == "config":
        (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "x": 1}))
    elif what == "weight":
        save_file(
            {"c": torch.tensor([0, 0, 0, 0, 1], dtype=torch.bfloat16)}, tmp_path / "two.safetensors"
        )
    else:
        (tmp_path / "two.safetensors").rename(tmp_path / "tri.safetensors")
        write_index(tmp_path, dict.fromkeys("ab", "one.safetensors") | {"c": "tri.safetensors"})
    assert open_checkpoint(tmp_path).fingerprint != before


def test_a_large_file_is_fingerprinted_by_samples_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WHOLE", 1024)
    folder = folder_of(tmp_path, {"a": torch.zeros(2**20)})
    file = folder / "model.safetensors"
    os.utime(file, ns=(5, 5))
    first = open_checkpoint(folder).fingerprint
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(5, 5))
    sampled = open_checkpoint(folder).fingerprint
    os.utime(file, ns=(6, 6))
    assert len({first, sampled, open_checkpoint(folder).fingerprint}) == 3


# what is refused


def test_a_missing_folder(tmp_path: Path) -> None:
    assert "absent does not exist" in refusal(tmp_path / "absent")


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"a": torch.ones(1)})
    assert "give the folder" in refusal(folder / "model.safetensors")


def test_no_config(tmp_path: Path) -> None:
    assert "config.json is missing" in refusal(tmp_path)


def test_only_gguf(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert "GGUF" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "not valid JSON"), ("[]", "a list"), ("[" * 99999, "nested too deeply")],
)
def test_a_config_that_is_no_object(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    said = refusal(tmp_path)
    assert "config.json" in said
    assert says in said


def test_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "holds no weights" in refusal(tmp_path)


def test_a_file_of_no_tensors(tmp_path: Path) -> None:
    assert "holds no tensors" in refusal(folder_of(tmp_path, {}))


def test_shards_without_their_index(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert "one.safetensors but neither" in refusal(tmp_path)


def test_a_truncated_shard(tmp_path: Path) -> None:
    file = sharded(tmp_path) / "two.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    said = refusal(tmp_path)
    assert "two.safetensors is truncated" in said
    assert "'c'" in said


def test_an_absent_shard(tmp_path: Path) -> None:
    (sharded(tmp_path) / "two.safetensors").unlink()
    assert "two.safetensors is missing" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["../two.safetensors", "/etc/passwd", "a\\b", "a\0b", "", "C:x"])
def test_a_shard_outside_the_folder(name: str, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "inner")
    shutil.copy(folder / "two.safetensors", tmp_path / "two.safetensors")
    write_index(folder, {"c": name})
    said = refusal(folder)
    assert repr(name) in said
    assert "not a file inside" in said


def test_a_shard_name_that_is_no_name(tmp_path: Path) -> None:
    write_index(sharded(tmp_path), {"c": 3})
    assert "gives 'c' the shard 3" in refusal(tmp_path)


def test_an_index_without_a_map(tmp_path: Path) -> None:
    write_index(sharded(tmp_path), [])
    assert "no weight_map" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["two.safetensors", "config.json", "model.safetensors.index.json"])
def test_a_link_out_of_the_folder(name: str, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "inner")
    shutil.move(folder / name, tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    said = refusal(folder)
    assert f"{name} links to" in said


def test_a_folder_that_only_pretends_to_be_a_cache_may_not_link_out(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "models--x" / "elsewhere" / "abc")
    shutil.move(folder / "two.safetensors", tmp_path / "models--x" / "two.safetensors")
    (folder / "two.safetensors").symlink_to(tmp_path / "models--x" / "two.safetensors")
    assert "two.safetensors links to" in refusal(folder)


def test_a_link_inside_the_folder_is_fine(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    (folder / "two.safetensors").rename(folder / "real")
    (folder / "two.safetensors").symlink_to("real")
    assert "c" in open_checkpoint(folder).tensors


def test_a_tensor_that_its_shard_does_not_hold(tmp_path: Path) -> None:
    write_index(sharded(tmp_path), {"a": "one.safetensors", "d": "two.safetensors"})
    said = refusal(tmp_path)
    assert "'d'" in said
    assert "two.safetensors does not hold" in said


def test_a_tensor_that_the_index_puts_into_another_shard(tmp_path: Path) -> None:
    write_index(sharded(tmp_path), {"a": "two.safetensors", "b": "one.safetensors"})
    assert "two.safetensors does not hold 'a'" in refusal(tmp_path)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    save_file({"c": torch.ones(1), "a": torch.ones(1)}, sharded(tmp_path) / "two.safetensors")
    said = refusal(tmp_path)
    assert "two.safetensors stores 'a', which one.safetensors stores too" in said


def test_a_file_cut_after_it_was_opened(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"a": torch.ones(100)})
    found = open_checkpoint(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"model\.safetensors ends within 'a'"):
        found.read("a")


def test_tensors_and_rows_that_are_not_there(tmp_path: Path) -> None:
    found = open_checkpoint(folder_of(tmp_path, {"a": torch.ones(3)}))
    with pytest.raises(CheckpointError, match="no tensor 'z'"):
        found.read("z")
    for a, b in ((-1, 2), (2, 1), (0, 4)):
        with pytest.raises(CheckpointError, match="no rows"):
            found.read_rows("a", a, b)


def test_what_older_tools_wrote_beside_the_config_is_part_of_the_fingerprint(
    tmp_path: Path,
) -> None:
    """Where the config says nothing: there that file decides how weights are read."""
    folder = sharded(tmp_path)
    before = open_checkpoint(folder).fingerprint
    beside = folder / "quantize_config.json"
    beside.write_text('{"bits": 4}')
    first = open_checkpoint(folder).fingerprint
    beside.write_text('{"bits": 8}')
    assert len({before, first, open_checkpoint(folder).fingerprint}) == 3
    beside.unlink()
    assert open_checkpoint(folder).fingerprint == before
