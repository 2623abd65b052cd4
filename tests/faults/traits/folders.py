"""Indexes of shards, and folders whose files are no files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from tests.faults.traits.trait import parts, trait, weights

TIB = 1 << 40


def index(folder: Path, weight_map: object) -> None:
    """An index beside shards that are not there."""
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _shard(name: str, shard: str, *says: str) -> None:
    @trait(f"index: {name}", "index.json", *says)
    def build(folder: Path) -> None:
        weights(folder).rename(folder / "one.safetensors")
        index(folder, dict.fromkeys(parts_of(folder / "one.safetensors"), shard))


def parts_of(file: Path) -> list[str]:
    """The names of the tensors of a weight file."""
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return [name for name in header if name != "__metadata__"]


_shard("a shard outside", "../../../../etc/passwd", "not a file inside the folder")
_shard("an absolute shard", "/etc/passwd", "not a file inside the folder")
_shard("a shard that is a URL", "https://example.com/x.safetensors", "not a file inside the folder")
_shard("a shard named with NUL", "one\0.safetensors", "not a file inside the folder")
_shard("a shard that is missing", "two.safetensors", "two.safetensors is missing")
_shard("a shard in other capitals", "One.safetensors", "One.safetensors is missing")
_shard("a shard named by a number", 7, "7")  # type: ignore[arg-type]


def _text(name: str, content: str, *says: str) -> None:
    @trait(f"index: {name}", "index.json", *says)
    def build(folder: Path) -> None:
        weights(folder).rename(folder / "one.safetensors")
        (folder / "model.safetensors.index.json").write_text(content)


_text("nested 100,000 deep", '{"weight_map":' * 100_000, "nested too deeply")
_text("a list", "[]", "a list")
_text("without a map", "{}", "weight_map")
_text("a key twice", '{"weight_map":{"a":"one.safetensors","a":"../x"}}', "appears twice")


@trait("index: a tensor in two shards", "two.safetensors", "which one.safetensors stores too")
def _two(folder: Path) -> None:
    names = parts_of(weights(folder))
    weights(folder).rename(folder / "one.safetensors")
    (folder / "two.safetensors").write_bytes((folder / "one.safetensors").read_bytes())
    index(folder, {name: ("one", "two")[i % 2] + ".safetensors" for i, name in enumerate(names)})


@trait("index: shards of names that differ in capitals alone", "model.safetensors.index.json")
def _capitals(folder: Path) -> None:
    names = parts_of(weights(folder))
    weights(folder).rename(folder / "one.safetensors")
    index(folder, {name: ("one", "ONE")[i % 2] + ".safetensors" for i, name in enumerate(names)})


# -- files that are no files ----------------------------------------------------------------------

READ = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
"""Files that are read of a folder; the last two by a model alone."""


def _pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def _device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def _out(path: Path) -> None:
    outside = path.parent.parent / f"outside-{path.name}"
    outside.write_bytes(path.read_bytes() if path.is_file() else b"{}")
    path.unlink(missing_ok=True)
    path.symlink_to(outside)


def _loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def _sparse(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(10 * TIB)


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pipe": (_pipe, "is a pipe"),
    "a folder": (_folder, "is a folder"),
    "a link to /dev/zero": (_device, "/dev/zero"),
    "a link out of the folder": (_out, "outside the checkpoint's folder"),
    "a link to itself": (_loop, "links"),
    "a sparse file of 10 TiB": (_sparse, "10995116277760 bytes"),
}


def _kind(file: str, kind: str) -> None:
    make, says = KINDS[kind]
    command = "eval" if file.startswith("tokenizer") else "triage"

    @trait(f"folder: {file} is {kind}", file, says, command=command)  # type: ignore[arg-type]
    def build(folder: Path) -> None:
        make(folder / file)


for _file in READ:
    for _name in KINDS:
        _kind(_file, _name)


@trait("folder: a shard is a pipe", "one.safetensors", "is a pipe")
def _pipe_shard(folder: Path) -> None:
    index(folder, dict.fromkeys(parts_of(weights(folder)), "one.safetensors"))
    weights(folder).unlink()
    os.mkfifo(folder / "one.safetensors")


@trait("folder: the index is a pipe", "model.safetensors.index.json", "is a pipe")
def _pipe_index(folder: Path) -> None:
    weights(folder).rename(folder / "one.safetensors")
    os.mkfifo(folder / "model.safetensors.index.json")


@trait("folder: a sparse file that holds a tensor of a tebibyte", "model.safetensors", "holes")
def _sparse_tensor(folder: Path) -> None:
    header, data = parts(folder)
    header["model.layers.1.more.weight"] = {
        "dtype": "F32",
        "shape": [1 << 20, 1 << 18],
        "data_offsets": [len(data), len(data) + TIB],
    }
    text = json.dumps(header).encode()
    with weights(folder).open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text + data)
        stream.truncate(8 + len(text) + len(data) + TIB)


@trait("folder: a pipe where an adapter's config would be", "config.json is missing")
def _pipe_adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "adapter_config.json")


@trait("folder: a GGUF file of holes", "x.gguf", "holes", model="x.gguf")
def _sparse_gguf(folder: Path) -> None:
    with (folder / "x.gguf").open("wb") as stream:
        stream.write(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
        stream.truncate(TIB)


@trait("folder: a chat template that reads objects of Python", command="eval")
def _template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for a in range(10**9) %}{% endfor %}"
    )


@trait("folder: a further chat template is a pipe", "more.jinja", "is a pipe", command="eval")
def _pipe_template(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    os.mkfifo(folder / "additional_chat_templates" / "more.jinja")


@trait("folder: further chat templates lie elsewhere", "outside the checkpoint's", command="eval")
def _templates_outside(folder: Path) -> None:
    (folder / "additional_chat_templates").symlink_to("/etc")


@trait("folder: a vocabulary of another class is a pipe", "bpe.codes", "is a pipe", command="eval")
def _pipe_codes(folder: Path) -> None:
    os.mkfifo(folder / "bpe.codes")


@trait("folder: a tokenizer for a version lies outside", "fast_tokenizer_files", command="eval")
def _fast_outside(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    known["fast_tokenizer_files"] = ["../tokenizer.4.0.0.json"]
    file.write_text(json.dumps(known))
