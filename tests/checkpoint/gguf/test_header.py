"""Hostile and damaged GGUF files: each is refused in a sentence, at once."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from engine.checkpoint import open_checkpoint
from engine.checkpoint.gguf.files import read_files
from engine.checkpoint.gguf.header import read_gguf_header
from engine.errors import CheckpointError
from engine.ggml_types import GGML_TYPES
from tests.checkpoint.gguf.files import STRING, File, array, entry, tensor, whole
from tests.checkpoint.gguf.hostile import ARCHITECTURE, HOSTILE


@pytest.mark.parametrize("trait", HOSTILE)
def test_a_hostile_header_is_refused(trait: str, tmp_path: Path) -> None:
    file, said = HOSTILE[trait]
    path = file.write(tmp_path / "x.gguf")
    begun = time.process_time()
    with pytest.raises(CheckpointError, match=said) as caught:
        open_checkpoint(path)
    assert time.process_time() - begun < 1
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("size", [0, 3, 23])
def test_a_file_of_a_few_bytes_is_refused(size: int, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF"[:size] + b"\0" * max(0, size - 4))
    with pytest.raises(CheckpointError, match=f"{size} bytes long"):
        open_checkpoint(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole_file = File().write(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "x.gguf"
    for size in range(len(whole_file)):
        path.write_bytes(whole_file[:size])
        with pytest.raises(CheckpointError):
            read_gguf_header(path)


def test_ten_million_empty_strings_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    head = File(keys=[array("tokenizer.ggml.tokens", STRING, 10**7, b"")]).write(path)
    with head.open("ab") as stream:
        stream.truncate(90_000_000)
    begun = time.process_time()
    with pytest.raises(CheckpointError, match="10000000 strings"):
        open_checkpoint(path)
    assert time.process_time() - begun < 1


def test_a_header_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = File(
        keys=[
            ARCHITECTURE,
            whole("llama.block_count", 7),
            array("list", STRING, 2, struct.pack("<Q", 1) + b"a" + struct.pack("<Q", 0)),
            array("numbers", 6, 2, struct.pack("<2f", 0.5, -1)),
        ],
        tensors=[tensor("a.weight", (32, 2)), tensor("b.weight", (256, 3), 12, 256)],
        weights=256 + 3 * 144,
    )
    for version in (2, 3):
        file.version = struct.pack("<I", version)
        found = read_gguf_header(file.write(tmp_path / "x.gguf"))
        assert found.version == version
        assert found.metadata == {
            "general.architecture": "llama",
            "llama.block_count": 7,
            "list": ["a", ""],
            "numbers": [0.5, -1.0],
        }
        first, second = found.tensors.values()
        assert (first.shape, first.type.name, first.bytes) == ((2, 32), "f32", 256)
        assert (second.shape, second.type.name, second.bytes) == ((3, 256), "q4_k", 3 * 144)
        assert second.start == first.start + 256


def test_sizes_of_types_are_those_of_the_gguf_package() -> None:
    known = {number: (each.block, each.bytes) for number, each in GGML_TYPES.items()}
    assert known == {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
    assert {number: each.name for number, each in GGML_TYPES.items()} == {
        int(kind): kind.name.lower() for kind in GGMLQuantizationType
    }


def part(number: int, count: int, name: str, total: int = 2) -> File:
    keys = [
        entry("split.no", 2, struct.pack("<H", number)),
        entry("split.count", 2, struct.pack("<H", count)),
        entry("split.tensors.count", 5, struct.pack("<i", total)),
    ]
    return File(keys=[ARCHITECTURE, *keys], tensors=[tensor(name)])


def test_parts_are_joined_from_any_of_them(tmp_path: Path) -> None:
    part(0, 2, "a").write(tmp_path / "m-00001-of-00002.gguf")
    second = part(1, 2, "b").write(tmp_path / "m-00002-of-00002.gguf")
    headers, tensors = read_files(second)
    assert [header.file.name for header in headers] == [
        "m-00001-of-00002.gguf", "m-00002-of-00002.gguf"
    ]  # fmt: skip
    assert set(tensors) == {"a", "b"}


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (None, "m-00002-of-00002.gguf is missing"),
        (part(1, 3, "b"), "counted from 0, of 3"),
        (part(0, 2, "b"), "that it is part 0"),
        (part(1, 2, "a"), "stores 'a', which"),
        (part(1, 65_535, "b"), "of 65535"),
    ],
)
def test_parts_that_do_not_fit_are_refused(second: File | None, said: str, tmp_path: Path) -> None:
    first = part(0, 2, "a").write(tmp_path / "m-00001-of-00002.gguf")
    if second is not None:
        second.write(tmp_path / "m-00002-of-00002.gguf")
    with pytest.raises(CheckpointError, match=said):
        read_files(first)


def test_a_part_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    first = part(0, 2, "a", 3).write(tmp_path / "m-00001-of-00002.gguf")
    part(1, 2, "b", 3).write(tmp_path / "m-00002-of-00002.gguf")
    with pytest.raises(CheckpointError, match="hold 3 tensors"):
        read_files(first)


def test_a_name_of_65535_parts_is_refused(tmp_path: Path) -> None:
    path = File().write(tmp_path / "m-00001-of-65535.gguf")
    with pytest.raises(CheckpointError, match="65535 parts"):
        read_files(path)
