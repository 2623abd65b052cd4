"""GGUF files: lying headers, tokenizers and templates, blocks that are not numbers."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoint.gguf.files import File
from tests.checkpoint.gguf.hostile import HOSTILE
from tests.faults.traits.trait import trait

NAME = "x.gguf"


def _lies(name: str, file: File, told: str) -> None:
    @trait(f"gguf: {name}", NAME, model=NAME, told=told)
    def build(folder: Path) -> None:
        file.write(folder / NAME)


for _name, (_file, _told) in HOSTILE.items():
    _lies(_name, _file, _told)


@trait("gguf: a file of three bytes", NAME, "3 bytes long", model=NAME)
def _three(folder: Path) -> None:
    (folder / NAME).write_bytes(b"GGU")


PARTS = "m-00001-of-65535.gguf"


@trait("gguf: a name of 65,535 parts", PARTS, "65535 parts", model=PARTS)
def _parts(folder: Path) -> None:
    File().write(folder / PARTS)
