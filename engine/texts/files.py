"""Text files: plain, compressed, JSON, JSON lines, CSV, Parquet."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from engine.errors import TextError, first_line
from engine.texts.chats import as_chat, is_chat
from engine.texts.rows import CHAT, STRING, Asked, Notify, Rows, listed, text_of
from engine.texts.text import Text

_PACKED: Mapping[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ\x00": lzma.decompress,
}
"""Compressed files by their first bytes."""
_PACKED_NAMES = (".gz", ".bz2", ".xz")
PARQUET = b"PAR1"
SUFFIXES = frozenset(
    {".txt", ".md", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", *_PACKED_NAMES}
)
"""Names that end like this are files, never datasets of the hub."""


def read_text_file(path: Path, asked: Asked, notify: Notify) -> Text:
    """A file as one text.

    Plain text is read whole; JSON, JSON lines, CSV and Parquet are rows with columns.

    Args:
        path: of the file.
        asked: as the user named it.
        notify: called with a sentence if rows are skipped.

    Raises:
        TextError: it cannot be read or decoded, is empty, or see `rows.text_of`.
    """
    rows = _parquet(path) if _begins(path) == PARQUET else _rows(path, asked)
    return rows if isinstance(rows, Text) else text_of(rows, path.name, asked, notify)


def _begins(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(PARQUET))
    except OSError as error:
        raise TextError(f"{path}: cannot be read: {error.strerror}") from error


def _rows(path: Path, asked: Asked) -> Rows | Text:
    content = _decoded(path)
    if not content.strip():
        raise TextError(f"{path}: the file is empty")
    name = path.name.lower()
    for ending in _PACKED_NAMES:
        name = name.removesuffix(ending)
    if name.endswith((".json", ".jsonl", ".ndjson")):
        return _records(str(path), _json(path, content.removeprefix("\ufeff")))
    if name.endswith((".csv", ".tsv")):
        return _records(str(path), _csv(content, "\t" if name.endswith(".tsv") else ","))
    if asked.column:
        raise TextError(f"{path}: a plain text has no columns: leave out :{asked.column}")
    return Text(path.name, content)


def _decoded(path: Path) -> str:
    try:
        raw = path.read_bytes()
        for begins, unpack in _PACKED.items():
            if raw.startswith(begins):
                raw = unpack(raw)
        text = io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8").read()
    except UnicodeDecodeError as error:
        raise TextError(
            f"{path}: not UTF-8 at byte {error.start}: convert it, for example with iconv"
        ) from error
    except (EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise TextError(f"{path}: cannot be decompressed: {first_line(error)}") from error
    except OSError as error:  # gzip and bz2 raise it for damaged files too, without a number
        raise TextError(f"{path}: cannot be read: {error.strerror or first_line(error)}") from error
    return text


def _json(path: Path, content: str) -> list[Any]:
    """The rows of a JSON file: a list, an object with one, or one row per line."""
    try:
        whole = json.loads(content)
    except json.JSONDecodeError:
        return list(_json_lines(path, content))
    if isinstance(whole, dict):
        inside = [each for each in whole.values() if _is_list_of_rows(each)]
        whole = inside[0] if len(inside) == 1 and not as_chat(inside[0]) else [whole]
    if not isinstance(whole, list):
        raise TextError(f"{path}: expected a list of rows, found a {type(whole).__name__}")
    return whole


def _is_list_of_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _json_lines(path: Path, content: str) -> Iterator[Any]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise TextError(f"{path}: line {number} is not JSON: {error}") from error


def _csv(content: str, separator: str) -> list[Any]:
    csv.field_size_limit(1 << 30)
    return list(csv.DictReader(io.StringIO(content, newline=""), delimiter=separator))


def _records(name: str, records: list[Any]) -> Rows:
    """Rows that are objects, or strings: then the only column has no name."""
    if not any(isinstance(each, dict) for each in records):
        return Rows(name, len(records), {"": _kind(records)}, lambda _: records)
    rows = [each if isinstance(each, dict) else {} for each in records]
    names = dict.fromkeys(key for row in rows for key in row)
    kinds = {str(key): _kind(row.get(key) for row in rows) for key in names}
    return Rows(name, len(rows), kinds, lambda column: (row.get(column) for row in rows))


def _kind(values: Iterable[Any]) -> str:
    """What a column holds, by its first value that is not null."""
    first = next((each for each in values if each is not None), None)
    if first is None:
        return "nothing"
    if isinstance(first, str):
        return STRING
    return CHAT if as_chat(first) else type(first).__name__


def _parquet(path: Path) -> Rows:
    """Reads one column only."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        kinds = {field.name: _arrow_kind(field.type) for field in file.schema_arrow}
    except (pyarrow.ArrowException, OSError) as error:
        raise TextError(f"{path}: not a Parquet file: {first_line(error)}") from error

    def values(column: str) -> Iterator[Any]:
        try:
            for batch in file.iter_batches(columns=[column]):
                yield from batch.column(0).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise TextError(f"{path}: {column} cannot be read: {first_line(error)}") from error

    return Rows(str(path), file.metadata.num_rows, kinds, values)


def rows_of_parquet(name: str, paths: Sequence[Path]) -> Rows:
    """The rows of several Parquet files, one after the other.

    Raises:
        TextError: one cannot be read, or has other columns than the first.
    """
    parts = [_parquet(path) for path in paths]
    for part in parts:
        if part.kinds != parts[0].kinds:
            raise TextError(
                f"{part.name} has the columns {listed(part.kinds)}, and {parts[0].name} has "
                f"{listed(parts[0].kinds)}: name one file"
            )
    return Rows(
        name,
        sum(part.count for part in parts),
        parts[0].kinds,
        lambda column: chain.from_iterable(part.values(column) for part in parts),
    )


def _arrow_kind(kind: Any) -> str:
    from pyarrow import types

    if types.is_string(kind) or types.is_large_string(kind):
        return STRING
    if types.is_list(kind) or types.is_large_list(kind):
        inner = kind.value_type
        if types.is_struct(inner) and is_chat({field.name for field in inner}):
            return CHAT
    return str(kind)


def rows_of_dataset(name: str, dataset: Any) -> Rows:
    """The rows of a ``datasets.Dataset``."""
    schema = dataset.features.arrow_schema
    kinds = {field.name: _arrow_kind(field.type) for field in schema}
    for column, kind in kinds.items():
        # An older feature, a dict of lists, is stored as a struct of lists.
        field = schema.field(column)
        if kind != CHAT and str(field.type).startswith("struct<"):
            inner = {each.name for each in field.type}
            kinds[column] = CHAT if is_chat(inner) else kind
    return Rows(name, len(dataset), kinds, lambda column: dataset[column])
