"""The files of one model: one, or the parts that ``llama-gguf-split`` made of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from engine.checkpoint.files import check_file
from engine.checkpoint.gguf.header import GgufHeader, GgufTensor, read_gguf_header
from engine.errors import CheckpointError

_PART = re.compile(r"(?P<stem>.*)-(?P<part>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)
_MOST_PARTS = 1000


def read_files(file: Path) -> tuple[list[GgufHeader], Mapping[str, GgufTensor]]:
    """The headers of all files of a model, its first part first, and all tensors.

    Args:
        file: any of them.

    Raises:
        CheckpointError: a part is missing or is another's; and as `read_gguf_header`.
    """
    parts = _parts(file)
    headers = [read_gguf_header(part) for part in parts]
    tensors: dict[str, GgufTensor] = {}
    for number, header in enumerate(headers):
        _check_part(header, number, len(parts))
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise CheckpointError(
                    f"{header.file} stores {name!r}, which {tensors[name].file.name} stores too; "
                    "download the parts again"
                )
            tensors[name] = tensor
    declared = headers[0].metadata.get("split.tensors.count", len(tensors))
    if declared != len(tensors):
        raise CheckpointError(
            f"{headers[0].file} says that its parts hold {declared} tensors, and they hold "
            f"{len(tensors)}; download the parts again"
        )
    return headers, tensors


def _parts(file: Path) -> list[Path]:
    """The paths of all parts, by the name of one."""
    check_file(file.parent, file, follow=True)  # who names a file has chosen it
    match = _PART.fullmatch(file.name)
    if match is None:
        return [file]
    count = int(match["count"])
    if not 1 <= count <= _MOST_PARTS:
        raise CheckpointError(f"{file} is one of {count} parts by its name, which no model has")
    names = [f"{match['stem']}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1)]
    missing = next((name for name in names if not (file.parent / name).is_file()), None)
    if missing is not None:
        raise CheckpointError(
            f"{file.parent / missing} is missing, a part of the model of {file.name}; "
            "finish the download"
        )
    parts = [file.parent / name for name in names]
    for part in parts:
        check_file(file.parent, part, follow=True)
    return parts


def _check_part(header: GgufHeader, number: int, count: int) -> None:
    said = header.metadata.get("split.count", 1), header.metadata.get("split.no", 0)
    if said[0] in (0, 1) and count == 1:
        return
    if said != (count, number):
        raise CheckpointError(
            f"{header.file} says that it is part {said[1]!r}, counted from 0, of {said[0]!r}, and "
            f"its name that it is part {number} of {count}: give all parts the names that they had"
        )
