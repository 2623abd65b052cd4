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
from tests.checkpoint.gguf.files import ARRAY, STRING, File, array, entry, string, tensor, whole

ARCHITECTURE = string("general.architecture", "llama")

HOSTILE: dict[str, tuple[File, str]] = {
    "dims wrap": (File(tensors=[tensor(dims=(2**42 + 1, 2**22))]), "the dimensions"),
    "dims of int64's end": (File(tensors=[tensor(dims=(2**63 - 1, 2))]), "the dimensions"),
    "dim 0": (File(tensors=[tensor(dims=(0, 2))]), "the dimensions"),
    "5 dims": (File(tensors=[tensor(dims=(1, 1, 1, 1, 1))]), "5 dimensions"),
    "9 dims": (File(tensors=[tensor(count=9)]), "9 dimensions"),
    "2^32-1 dims": (File(tensors=[tensor(count=2**32 - 1)]), "4294967295 dimensions"),
    "no dims": (File(tensors=[tensor(dims=())]), "0 dimensions"),
    "2^63 tensors": (File(tensor_count=2**63), "9223372036854775808 tensors"),
    "2^63 keys": (File(key_count=2**63), "9223372036854775808 keys"),
    "more keys than there are": (File(key_count=9), "truncated|beyond"),
    "offset past the end": (File(tensors=[tensor(offset=2**40)]), "truncated: 'a.weight'"),
    "offset wraps": (File(tensors=[tensor(offset=2**64 - 32)]), "truncated: 'a.weight'"),
    "offset unaligned": (File(tensors=[tensor(offset=3)]), "no multiple of 32"),
    "size beyond the file": (File(tensors=[tensor(dims=(2**20, 2**20))]), "truncated: 'a.weight'"),
    "sum of sizes wraps": (
        File(tensors=[tensor(dims=(2**60, 1)), tensor("b", dims=(2**60, 1), offset=32)]),
        "truncated",
    ),
    "overlap": (File(tensors=[tensor(), tensor("b.weight")]), "overlap"),
    "unknown type": (File(tensors=[tensor(kind=99)]), "in type 99"),
    **{
        f"type {kind}": (File(tensors=[tensor(kind=kind)]), f"in type {kind}")
        for kind in (4, 5, 31, 32, 33, 36, 37, 38)
    },
    **{
        f"alignment {value}": (
            File(keys=[ARCHITECTURE, whole("general.alignment", value)]), "general.alignment"
        )
        for value in (0, 3, 2**31)
    },
    "alignment of int32": (
        File(keys=[entry("general.alignment", 8, struct.pack("<Q", 2) + b"32")]), "'32'"
    ),
    "alignment twice": (
        File(keys=[whole("general.alignment", 32), whole("general.alignment", 32)]), "twice"
    ),
    "empty key": (File(keys=[string("", "x")]), "key ''"),
    "huge key": (File(keys=[struct.pack("<Q", 2**40) + b"x" * 9]), "beyond any real one"),
    "key that is not UTF-8": (File(keys=[string(b"\xff\xfe", "x")]), "not UTF-8"),
    "value that is not UTF-8": (File(keys=[string("general.name", b"\xc3(")]), "not UTF-8"),
    "key with NUL": (File(keys=[string("a\0b", "x")]), "which is none"),
    "key twice": (File(keys=[ARCHITECTURE, ARCHITECTURE]), "twice"),
    "tensor twice": (File(tensors=[tensor(), tensor(offset=256)], weights=512), "twice"),
    "tensor without a name": (File(tensors=[tensor("")]), "called ''"),
    "array of arrays": (
        File(keys=[array("a", ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 1000)]), "array of type 9"
    ),
    "array of 2^60 numbers": (File(keys=[array("a", 4, 2**60, b"")]), "beyond any real one"),
    "array of 2^60 strings": (File(keys=[array("a", STRING, 2**60, b"")]), "beyond any real one"),
    "array of an unknown type": (File(keys=[array("a", 77, 1, b"")]), "array of type 77"),
    "value of an unknown type": (File(keys=[entry("a", 13, b"")]), "the type 13"),
    "string beyond the file": (
        File(keys=[entry("a", STRING, struct.pack("<Q", 2**27) + b"x")]), "truncated"
    ),
    "FUGG with a little-endian body": (File(magic=b"FUGG"), "big-endian"),
    "big-endian version": (File(version=struct.pack(">I", 3)), "big-endian"),
    "version 1": (File(version=struct.pack("<I", 1)), "version 1"),
    "version 9": (File(version=struct.pack("<I", 9)), "version 9"),
    "another magic": (File(magic=b"GGML"), "begins with b'GGML'"),
    "blocks that do not divide the row": (
        File(tensors=[tensor(dims=(48, 2), kind=2)]), "do not divide rows of 48"
    ),
}  # fmt: skip


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
