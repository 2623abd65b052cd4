"""`engine.bench`: a finished checkpoint timed in a runtime, as a document."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.errors import UsageError
from engine.report import schema as s
from engine.report.bench_parts import bench_document
from engine.runtimes.running import Ask
from engine.runtimes.running import bench as timed
from engine.steps import drained


def bench(artefact: str, **asked: Any) -> s.BenchDocument:
    """Time a finished checkpoint; see `engine.bench`."""
    if unknown := asked.keys() - set(Ask.__struct_fields__):
        raise UsageError(f"bench has no {sorted(unknown)[0]}: it has {', '.join(_names())}")
    try:
        ask = msgspec.convert({"artefact": artefact, **asked}, Ask)
    except msgspec.ValidationError as error:
        raise UsageError(f"bench: {error}") from error
    return bench_document(drained(timed(ask)))


def _names() -> list[str]:
    return [name for name in Ask.__struct_fields__ if name != "artefact"]
