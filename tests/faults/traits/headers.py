"""Headers of safetensors files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.traits.trait import add_tensor, parts, trait, weights, write

NAMES = {
    "escape codes": "\x1b]0;owned\x07\x1b[2J.weight",
    "markup": "[/][bold red]model[/bold red].weight",
    "a script": "<script>alert(1)</script>.weight",
    "line breaks": "model\nqtui: done\r.weight",
    "an override of direction": "model.\u202eevil.weight",
    "a path": "../../etc/passwd.weight",
    "shell words": "$(touch executed);`touch executed`'\".weight",
}
"""Names that a terminal, markup, a page or a shell would obey, by what they hold."""
W = "model.layers.0.mlp.up_proj.weight"


def _length(name: str, length: int, says: str) -> None:
    @trait(f"safetensors: {name}", "model.safetensors", says)
    def build(folder: Path) -> None:
        write(folder, *parts(folder), length)


_length("a header of no bytes", 0, "0 bytes long")
_length("a header of one byte", 1, "1 bytes long")
_length("a header of 2^63 bytes", 2**63, "beyond any real one")
_length("a header beyond the file", 90_000_000, "truncated")
_length("a header above the limit", 100_000_001, "beyond any real one")


def _text(name: str, says: str, text: Callable[[bytes], bytes]) -> None:
    @trait(f"safetensors: {name}", "model.safetensors", says)
    def build(folder: Path) -> None:
        header, data = parts(folder)
        write(folder, text(json.dumps(header).encode()), data)


_text("a header that is a list", "not an object", lambda text: b"[" + text + b"]")
_text("a header that is a number", "not an object", lambda text: b"12")
_text("a byte order mark", "does not begin with {", lambda text: b"\xef\xbb\xbf" + text)
_text("spaces before the header", "does not begin with {", lambda text: b"    " + text)
_text("bytes behind the header", "not valid JSON", lambda text: text + b"PK\x05\x06")
_text("a header 100,000 deep", "nested too deeply", lambda text: b'{"a":' * 100_000)
_text("lists 100,000 deep", "nested too deeply", lambda text: b'{"a":' + b"[" * 100_000)
_text("a key twice", "appears twice", lambda text: text[:-1] + b"," + text[1:])
_text(
    "a million tensors",
    "1000000 tensors",
    lambda text: b"{" + b",".join(
        b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(10**6)
    ) + b"}",
)  # fmt: skip


def _entry(name: str, says: str, **given: Any) -> None:
    @trait(f"safetensors: {name}", "model.safetensors", W, says)
    def build(folder: Path) -> None:
        header, data = parts(folder)
        header[W] = {**header[W], **given}
        write(folder, header, data)


_entry("true in a shape", "shape", shape=[True, 64])
_entry("a negative size", "shape", shape=[-128, 64])
_entry("a float in a shape", "shape", shape=[128.0, 64])
_entry("a size of 10^30", "shape", shape=[10**30, 64])
_entry("sizes whose product wraps", "takes", shape=[2**42 + 1, 2**22])
_entry("offsets reversed", "offsets", data_offsets=[32768, 0])
_entry("offsets of 10^30", "offsets", data_offsets=[10**30, 10**30 + 32768])
_entry("offsets as text", "offsets", data_offsets=["0", "32768"])
_entry("another size than shape and dtype", "takes", shape=[127, 64])
_entry("an unknown dtype", "F99", dtype="F99")
_entry("a dtype of four bits", "'F4'", dtype="F4")
_entry("a dtype of six bits", "'F6_E2M3'", dtype="F6_E2M3")
_entry("a dtype that runs", "__import__", dtype="__import__('os').mkdir('executed')")


def _shifted(name: str, says: str, by: int, more: int) -> None:
    @trait(f"safetensors: {name}", "model.safetensors", says)
    def build(folder: Path) -> None:
        header, data = parts(folder)
        last = max((n for n in header if n != "__metadata__"), key=lambda n: _begins(header, n))
        header[last]["data_offsets"] = [at + by for at in header[last]["data_offsets"]]
        write(folder, header, data + bytes(more))


def _begins(header: dict[str, Any], name: str) -> int:
    return int(header[name]["data_offsets"][0])


_shifted("overlapping tensors", "overlap", -4, 0)
_shifted("a hole between tensors", "hole", 4, 4)
_shifted("a tensor past the end", "truncated", 4, 0)
_shifted("bytes behind the last tensor", "goes on", 0, 4)


def _metadata(name: str, value: object, *says: str) -> None:
    @trait(f"safetensors: {name}", *says)
    def build(folder: Path) -> None:
        header, data = parts(folder)
        write(folder, {**header, "__metadata__": value}, data)


_metadata("metadata that are numbers", {"a": 1}, "model.safetensors", "__metadata__")
_metadata("metadata that are a list", [], "model.safetensors", "__metadata__")
_metadata("metadata of 50 MB", {"a": "x" * 50_000_000})


def _named(kind: str, name: str) -> None:
    @trait(f"safetensors: a tensor named with {kind}")
    def build(folder: Path) -> None:
        add_tensor(folder, name, "F32", [64, 64], bytes(4 * 64 * 64))


for _kind, _name in NAMES.items():
    _named(_kind, _name)
    _named(f"{_kind}, in a block", f"model.layers.1.{_name}")


@trait("safetensors: a name of a million characters", "model.safetensors", "1000007 characters")
def _long_name(folder: Path) -> None:
    add_tensor(folder, "x" * 10**6 + ".weight", "F32", [2, 2], bytes(16))


@trait("safetensors: a layer without elements")
def _empty_layer(folder: Path) -> None:
    add_tensor(folder, "model.layers.1.empty.weight", "F32", [0, 64], b"")


@trait("safetensors: a tensor without elements that is no layer")
def _empty_tensor(folder: Path) -> None:
    add_tensor(folder, "model.layers.1.input_layernorm.extra", "F32", [0], b"")


@trait("safetensors: a file of three bytes", "model.safetensors", "too short")
def _three(folder: Path) -> None:
    weights(folder).write_bytes(b"\x08\x00\x00")


@trait("safetensors: a pickle by another name", "model.safetensors", "torch.save")
def _pickle(folder: Path) -> None:
    import torch

    torch.save({"a": torch.ones(2)}, weights(folder))
