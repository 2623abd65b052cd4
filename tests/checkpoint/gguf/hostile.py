"""Headers of GGUF files that lie: what is wrong with each, and what is said of it."""

from __future__ import annotations

import struct

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
