"""The header of a safetensors file is believed only where it agrees with the file."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.checkpoint.headers import DTYPES, read_header
from engine.errors import CheckpointError


def write(folder: Path, header: object, weights: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with that header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + weights)
    return file


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_good_header_gives_absolute_offsets_in_the_order_of_the_bytes(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "late": entry("BF16", [1, 2], [8, 12]),
        "early": entry(),
        "none": entry("I64", [0, 3], [8, 8]),
        "number": entry("F8_E4M3", [], [12, 13]),
    }
    file = write(tmp_path, header, bytes(13))
    found = read_header(file)
    base = file.stat().st_size - 13
    assert list(found) == ["early", "none", "late", "number"]
    assert (found["late"].start, found["late"].end) == (base + 8, base + 12)
    assert found["late"].shape == (1, 2)
    assert found["late"].dtype == "bfloat16"
    assert found["number"].elements == 1
    assert found["none"].elements == 0


REFUSED: dict[str, tuple[object, int, str]] = {
    "not JSON": (b"{oops", 0, "not valid JSON"),
    "not UTF-8": (b'{"\xff":1}', 0, "not UTF-8"),
    "a list": ([1], 0, "not an object"),
    "nested deep": (b'{"a":' + b"[" * 100_000, 0, "nested"),
    "a huge integer": (b'{"w":' + b"9" * 5000 + b"}", 0, "not valid JSON"),
    "a key twice": (b'{"w":{},"w":{}}', 0, "'w' appears twice"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, 0, "__metadata__"),
    "an entry that is a list": ({"w": []}, 0, "'w'"),
    "a missing key": ({"w": {"dtype": "F32", "shape": [2]}}, 8, "'w'"),
    "an unknown key": ({"w": {**entry(), "x": 1}}, 8, "'w'"),
    "an unknown dtype": ({"w": entry("F99")}, 8, "'F99'"),
    "a dtype that is a list": ({"w": entry([])}, 8, "'w'"),
    "a negative dimension": ({"w": entry("F32", [-2])}, 8, "shape [-2]"),
    "a shape of booleans": ({"w": entry("F32", [True], [0, 4])}, 4, "shape [True]"),
    "a shape of floats": ({"w": entry("F32", [2.0])}, 8, "shape [2.0]"),
    "a huge dimension": ({"w": entry("F32", [2**70])}, 8, "'w'"),
    "negative offsets": ({"w": entry("F32", [2], [-8, 0])}, 8, "offsets [-8, 0]"),
    "reversed offsets": ({"w": entry("F32", [2], [8, 0])}, 8, "offsets [8, 0]"),
    "three offsets": ({"w": entry("F32", [2], [0, 4, 8])}, 8, "offsets"),
    "bytes unlike the shape": ({"w": entry("F32", [3])}, 8, "takes 12"),
    "an end beyond the file": ({"w": entry()}, 7, "truncated: 'w'"),
    "overlap": ({"a": entry(), "b": entry("F32", [2], [4, 12])}, 12, "overlap"),
    "the same bytes twice": ({"a": entry(), "b": entry()}, 8, "overlap"),
    "a hole": ({"a": entry(), "b": entry("F32", [2], [9, 17])}, 17, "hole of 1 bytes"),
    "a hole at the start": ({"a": entry("F32", [2], [1, 9])}, 9, "hole"),
    "bytes left over": ({"a": entry()}, 9, "goes on for 1 bytes"),
    "a name that is half a character": (b'{"\\ud800":{}}', 0, "not text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_header_that_contradicts_itself_or_the_file_is_refused_by_name(
    case: str, tmp_path: Path
) -> None:
    header, room, says = REFUSED[case]
    file = write(tmp_path, header, bytes(room))
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("length", "says"),
    [(0, "0 bytes long"), (2**63, "beyond"), (10_000, "truncated"), (200_000_000, "beyond")],
)
def test_a_length_that_lies_is_refused(length: int, says: str, tmp_path: Path) -> None:
    file = write(tmp_path, {"w": entry()}, bytes(8), length)
    with pytest.raises(CheckpointError, match=says):
        read_header(file)


@pytest.mark.parametrize("size", [0, 7])
def test_a_file_too_short_for_a_length_is_refused(size: int, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(size))
    with pytest.raises(CheckpointError, match="too short"):
        read_header(file)


def test_a_missing_file_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.safetensors cannot be read"):
        read_header(tmp_path / "absent.safetensors")


def test_control_characters_of_a_name_do_not_reach_the_message(tmp_path: Path) -> None:
    file = write(tmp_path, {"\x1b[2Jw": entry("F99")}, bytes(8))
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert "\x1b" not in str(caught.value)


GOOD = {
    "__metadata__": {"format": "pt"},
    "model.a.weight": entry("F16", [2, 3], [0, 12]),
    "model.b.weight": entry("BF16", [2], [12, 16]),
}

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 40) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES, "F4"]) | values,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | values,
        "data_offsets": st.lists(st.integers(-1, 20), min_size=2, max_size=2) | values,
    }
)


def survives(file: Path) -> None:
    """Reading gives our error or tensors that lie within the file, and nothing else."""
    try:
        found = read_header(file)
    except CheckpointError:
        return
    size = file.stat().st_size
    widths = dict(DTYPES.values())
    for tensor in found.values():
        assert 8 <= tensor.start <= tensor.end <= size
        assert tensor.bytes == tensor.elements * widths[tensor.dtype]


quick = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@quick
@given(header=st.dictionaries(st.text(max_size=4), entries | values, max_size=3))
def test_any_json_is_parsed_or_refused(header: dict[str, Any], tmp_path: Path) -> None:
    survives(write(tmp_path, header, bytes(16)))


@quick
@given(data=st.data())
def test_any_corruption_of_bytes_is_parsed_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    file = write(tmp_path, GOOD, bytes(16))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    survives(file)


@quick
@given(st.binary(max_size=64))
def test_any_bytes_are_parsed_or_refused(tmp_path: Path, text: bytes) -> None:
    survives(write(tmp_path, text, bytes(4)))
