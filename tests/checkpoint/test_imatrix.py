"""Importance matrices of llama.cpp: both forms, and files that are not what they seem."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint.imatrix import Entry, Imatrix, imatrix_bytes, read_imatrix
from engine.errors import CheckpointError

Q, GATE = "blk.0.attn_q.weight", "blk.1.ffn_gate_exps.weight"


def some() -> Imatrix:
    numbers = np.random.default_rng(0).random((3, 64), np.float32)
    entries = {
        Q: Entry(numbers[:1] * 1000, np.array([500], np.float32)),
        GATE: Entry(
            numbers * np.array([[300], [0], [200]], np.float32), np.array([300, 0, 200], np.float32)
        ),
    }
    return Imatrix(entries, ("wiki.txt",), 5, 100)


def written(tmp_path: Path, data: bytes) -> Path:
    file = tmp_path / "imatrix.gguf"
    file.write_bytes(data)
    return file


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = read_imatrix(written(tmp_path, imatrix_bytes(some())))
    assert (found.datasets, found.chunks, found.chunk_size) == (("wiki.txt",), 5, 100)
    assert found.tokens == 500
    assert list(found.entries) == [Q, GATE]
    for name, entry in some().entries.items():
        assert np.array_equal(found.entries[name].sums, entry.sums)
        assert np.array_equal(found.entries[name].counts, entry.counts)
    assert np.array_equal(found.entries[GATE].importance[1], np.ones(64))
    assert len(found.sha256) == 64


def test_the_older_form_has_the_means(tmp_path: Path) -> None:
    found = read_imatrix(written(tmp_path, imatrix_bytes(some(), older=True)))
    assert (found.datasets, found.chunks, found.chunk_size) == (("wiki.txt",), 5, 0)
    for name, entry in some().entries.items():
        means = found.entries[name].importance.reshape(entry.sums.shape)
        assert np.allclose(means, entry.importance, rtol=1e-6)


def test_the_gguf_package_reads_it(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(written(tmp_path, imatrix_bytes(some())))
    assert reader.get_field("general.type").contents() == "imatrix"
    assert reader.get_field("imatrix.datasets").contents() == ["wiki.txt"]
    assert reader.get_field("imatrix.chunk_count").contents() == 5
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert set(tensors) == {f"{name}.{end}" for name in (Q, GATE) for end in ("in_sum2", "counts")}
    assert np.array_equal(tensors[f"{GATE}.in_sum2"].data, some().entries[GATE].sums)
    assert tensors[f"{GATE}.counts"].shape.tolist() == [1, 3]


def test_one_that_the_gguf_package_writes_is_read(tmp_path: Path) -> None:
    file = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(file, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["a", "b"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_float32("share", 0.5)
    for name, entry in some().entries.items():
        writer.add_tensor(f"{name}.counts", entry.counts[:, None])
        writer.add_tensor(f"{name}.in_sum2", entry.sums)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_imatrix(file)
    assert found.datasets == ("a", "b")
    assert np.array_equal(found.entries[GATE].importance, some().entries[GATE].importance)


def _other_type(data: bytes) -> bytes:
    return data.replace(b"\x07\0\0\0\0\0\0\0imatrix", b"\x07\0\0\0\0\0\0\0adapter", 1)


def _negative(data: bytes) -> bytes:
    return data[:-64] + struct.pack("<f", -1.0) + data[-60:]


def _shared(data: bytes) -> bytes:
    """All tensors at the same place, which together are longer than the file."""
    entries = {f"blk.{number:03}.attn_q.weight": some().entries[Q] for number in range(100)}
    whole = imatrix_bytes(Imatrix(entries, (), 1, 1))
    return whole[: len(whole) - 99 * (4 * 64 + 32)]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_shared, "truncated"),
        (lambda data: data[:20], "too short"),
        (lambda data: data[:8] + b"\xff" * 8 + data[16:], "beyond any real one"),
        (lambda data: data[:4] + b"\x09" + data[5:], "version 9"),
        (_other_type, "'adapter', not of 'imatrix'"),
        (_negative, "negative"),
        (lambda data: data.replace(b".counts", b".amount", 1), "only one of sums and counts"),
        (lambda data: b"", "truncated"),
        (lambda data: b"\0" * 4, "no importance of any weight"),
        (lambda data: struct.pack("<ii", 1, -5), "truncated"),
        (lambda data: struct.pack("<ii", 1, 1 << 20), "beyond any real one"),
        (lambda data: struct.pack("<iicii", 1, 1, b"a", 1, 1 << 30), "truncated"),
        (lambda data: struct.pack("<iicii", 1, 1, b"a", 1, 0), "0 values"),
    ],
)
def test_a_spoilt_file_is_refused_by_name(
    spoil: Callable[[bytes], bytes], says: str, tmp_path: Path
) -> None:
    file = written(tmp_path, spoil(imatrix_bytes(some())))
    with pytest.raises(CheckpointError, match=says) as refused:
        read_imatrix(file)
    assert str(file) in str(refused.value)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    for file in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_imatrix(file)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_bytes_are_changed_it_is_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(imatrix_bytes(some(), older=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(whole) - 1, 700)))
        whole[at] = data.draw(st.integers(0, 255))
    whole = whole[: data.draw(st.integers(0, len(whole)))]
    with TemporaryDirectory() as folder:
        file = written(Path(folder), bytes(whole))
        try:
            read_imatrix(file)
        except CheckpointError:
            return
