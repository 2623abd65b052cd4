"""Old checkpoints: zip archives and pickles."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.traits.trait import trait, weights

FILE = "pytorch_model.bin"


def _pickle(name: str, *says: str) -> Callable[[Callable[[Path], bytes]], None]:
    """Register a folder whose weights are a pickle of these bytes."""

    def register(content: Callable[[Path], bytes]) -> None:
        @trait(f"pickle: {name}", FILE, *says)
        def build(folder: Path) -> None:
            weights(folder).unlink()
            (folder / FILE).write_bytes(content(folder))

    return register


class Runs:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, ("executed",)


def saved(value: object, *, zipped: bool = True) -> bytes:
    """What ``torch.save`` writes."""
    import torch

    room = io.BytesIO()
    torch.save(value, room, _use_new_zipfile_serialization=zipped)
    return room.getvalue()


def archive(pickled: bytes, name: str = "archive/data.pkl", **more: Any) -> bytes:
    """A zip archive as torch writes it, with any pickle."""
    room = io.BytesIO()
    with zipfile.ZipFile(room, "w", **more) as file:
        file.writestr(name, pickled)
        file.writestr("archive/version", b"3\n")
        file.writestr("archive/byteorder", b"little")
    return room.getvalue()


def named(module: str, name: str, *arguments: bytes) -> bytes:
    """A pickle that calls a function by a memoised ``STACK_GLOBAL``."""
    words = [pickle.PROTO + b"\x04"]
    for word in (module, name):
        text = word.encode()
        words.append(pickle.SHORT_BINUNICODE + bytes([len(text)]) + text + pickle.MEMOIZE)
    words += [pickle.POP, pickle.POP, pickle.BINGET + b"\x00", pickle.BINGET + b"\x01"]
    words += [pickle.STACK_GLOBAL, *arguments, pickle.TUPLE1, pickle.REDUCE, pickle.STOP]
    return b"".join(words)


def text(word: str) -> bytes:
    """A short string."""
    return pickle.SHORT_BINUNICODE + bytes([len(word)]) + word.encode()


RUN = "run code"


@_pickle("code in a zip", RUN)
def _zip(folder: Path) -> bytes:
    return saved({"a": Runs()})


@_pickle("code in a pickle", RUN)
def _plain(folder: Path) -> bytes:
    return pickle.dumps({"a": Runs()})


@_pickle("a memoised name", RUN)
def _memoised(folder: Path) -> bytes:
    return archive(named("posix", "mkdir", text("executed")))


@_pickle("a pickle in a pickle", RUN)
def _nested(folder: Path) -> bytes:
    inner = pickle.dumps(Runs(), protocol=2)
    return archive(named("pickle", "loads", pickle.SHORT_BINBYTES + bytes([len(inner)]) + inner))


@_pickle("builtins by way of numpy", RUN)
def _numpy(folder: Path) -> bytes:
    return archive(named("numpy", "__builtins__", text("eval")))


@_pickle("an attribute of torch", RUN)
def _torch(folder: Path) -> bytes:
    return archive(named("torch", "hub.load", text("executed")))


@_pickle("the pickle under another name", "data.pkl")
def _other_name(folder: Path) -> bytes:
    return archive(pickle.dumps({"a": Runs()}), "archive/evil.pkl")


@_pickle("a flag bit of encryption", "not a readable torch file")
def _flag(folder: Path) -> bytes:
    return _patched(saved({"a": Runs()}), 6, 8, lambda flags: flags | 1)


@_pickle("a wrong checksum", RUN)
def _checksum(folder: Path) -> bytes:
    return _patched(saved({"a": Runs()}), 14, 16, lambda found: found ^ 0xFFFF)


def _patched(content: bytes, local: int, central: int, change: Callable[[int], int]) -> bytes:
    """A zip with a field of two bytes changed in every header."""
    room = bytearray(content)
    for mark, at in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        found = room.find(mark)
        while found >= 0:
            (value,) = struct.unpack_from("<H", room, found + at)
            struct.pack_into("<H", room, found + at, change(value))
            found = room.find(mark, found + 4)
    return bytes(room)


@_pickle("a 7z archive")
def _7z(folder: Path) -> bytes:
    return b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(200)


@_pickle("a zip cut off")
def _cut(folder: Path) -> bytes:
    return saved({"a": 1})[:-100]


@_pickle("a compressed pickle that is a gigabyte", "data.pkl")
def _bomb(folder: Path) -> bytes:
    # Zeros are compressed a thousandfold.
    one = b"\x80\x02]" + b"(" * 10
    return archive(one + bytes(200_000_000), compression=zipfile.ZIP_DEFLATED)


@_pickle("a number of 2^31 bytes")
def _long4(folder: Path) -> bytes:
    return archive(b"\x80\x02" + pickle.LONG4 + struct.pack("<i", 2**31 - 1) + b"\1" * 9 + b".")


@_pickle("a text of 2^62 bytes")
def _text8(folder: Path) -> bytes:
    return archive(b"\x80\x04" + pickle.BINUNICODE8 + struct.pack("<Q", 2**62) + b"a.")


@_pickle("a frame of 2^62 bytes")
def _frame(folder: Path) -> bytes:
    return archive(b"\x80\x04" + pickle.FRAME + struct.pack("<Q", 2**62) + b"}.")


def _storage(size: int, shape: tuple[int, ...], offset: int = 0) -> bytes:
    """A tensor on a storage of a size of its own, without the storage."""
    content = saved({"a": _tensor()})
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        pickled = file.read("archive/data.pkl")
    wanted = [arg for op, arg, _ in pickletools.genops(pickled) if op.name == "BININT1"]
    assert 4 in wanted
    small = pickle.BININT1 + b"\x04"
    long = pickle.LONG1 + b"\x09" + size.to_bytes(9, "little")
    at = pickled.index(small)  # the size of the storage, then of the tensor
    changed = pickled[:at] + long + pickled[at + 2 :]
    return archive(changed)


def _tensor() -> Any:
    import torch

    return torch.ones(4)


@_pickle("a storage of 2^60 numbers")
def _huge(folder: Path) -> bytes:
    return _storage(2**60, (4,))


@_pickle("a list", "not a table of tensors")
def _list(folder: Path) -> bytes:
    return saved([1, 2])


@_pickle("no tensors", "no tensors")
def _none(folder: Path) -> bytes:
    return saved({"a": 1})


@_pickle("lists 100,000 deep")
def _deep(folder: Path) -> bytes:
    return archive(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")
