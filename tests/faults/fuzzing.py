"""Broken checkpoints by the thousand, and what must hold of each.

A sound small checkpoint is changed at random: keys, values and whole branches of its JSON, bytes of
its files, their ends. Opening it and reading every weight must then end in our own error or in
tensors, soon, with no file opened but its own and nothing run.

``python -m tests.faults.fuzzing 1000000`` does so for that many, and prints what it found.
`tests.faults.by_coverage` lets atheris choose the changes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from engine.checkpoint import list_layers, open_checkpoint, remarks
from engine.checkpoint.kv_cache import cache_blocks
from engine.checkpoint.layers import read_layer
from engine.errors import EngineError
from engine.model.config import refuse_other_models
from tests.faults.fuzz_bases import BASES, Gguf

SECONDS = 1.0
"""Processor time that a case may take."""


class Random(Protocol):
    """What is used of `random.Random`, which Hypothesis provides too."""

    def randrange(self, start: int, stop: int) -> int: ...
    def choice(self, seq: Any) -> Any: ...
    def random(self) -> float: ...


# -- changes --------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 8, 15, 31, 64, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**53,
    2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 0.5, -0.0, 1e308, "", "x", "4", "F32", "F4", "BOOL",
    "../../etc/passwd", "/dev/zero", "re:(a+)+$", "(?:.|..)*[^.]x", "((", "__import__('os')",
    "\x1b[2J", "\ud800", [], [0], [1, 2, 3], [[]], {}, {"a": {}}, ["re:.*"], "one.safetensors",
    "gptq", "awq", "fp8", "mxfp4", "hqq", "compressed-tensors", "torchao", "load", "model.layers",
)  # fmt: skip


NAMES = list(BASES)
NUMBERS = [each for each in VALUES if type(each) is int]
GGUF = "x.gguf"


def changed(given: Random, value: Any, depth: int = 0) -> Any:
    """JSON with one thing in it changed."""
    inner = isinstance(value, dict | list) and value and given.random() < 0.85
    if not inner or depth > 6:
        return given.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, what = given.choice(keys), given.randrange(0, 10)
    copied = dict(value) if isinstance(value, dict) else list(value)
    if what == 0:
        del copied[key]
    elif what == 1 and isinstance(copied, dict):
        copied[f"{key}{given.choice(('', '.x', 's', '_inv', '.weight'))}"] = copied[key]
    elif what == 1:
        copied.append(copied[key])
    elif what == 2 and isinstance(copied, dict):
        copied[given.choice(keys)] = copied.pop(key)
    else:
        copied[key] = changed(given, value[key], depth + 1)
    return copied


def spoilt(given: Random, content: bytes) -> bytes:
    """Bytes of which a few are changed, or the end is missing, or more come after it."""
    room, what = bytearray(content), given.randrange(0, 8)
    if what == 0 and room:
        return bytes(room[: given.randrange(0, len(room))])
    if what == 1:
        return bytes(room) + bytes(given.randrange(1, 40))
    for _ in range(given.randrange(1, 5)):
        if room:
            room[given.randrange(0, len(room))] = given.choice((0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x7B))
    return bytes(room)


def write(folder: Path, given: Random) -> str:
    """A broken checkpoint in a folder; returns what it was made from, and how."""
    name = given.choice(NAMES)
    found = BASES[name]
    for file in list(folder.iterdir()):
        file.unlink()
    if isinstance(found, Gguf):
        return f"{name}, changes {_write_gguf(folder / GGUF, found, given)}"
    config, header, data = found.config, found.header, found.data
    index: Any = {"weight_map": dict.fromkeys(header, "one.safetensors")}
    kinds = {given.randrange(0, 6) for _ in range(given.randrange(1, 3))}
    sharded = 5 in kinds or given.randrange(0, 8) == 0
    if 0 in kinds:
        config = changed(given, config)
    if 1 in kinds or 2 in kinds:
        header = changed(given, header)
    if 3 in kinds:
        data = spoilt(given, data)
    if 5 in kinds:
        index = changed(given, index)
    text = json.dumps(header).encode("utf-8", "replace")
    length = len(text) if given.randrange(0, 40) else given.choice((0, 1, 7, 2**31, 2**63, 10**8))
    content = length.to_bytes(8, "little") + text + data
    if 4 in kinds:
        content = spoilt(given, content)
    (folder / ("one.safetensors" if sharded else "model.safetensors")).write_bytes(content)
    if sharded:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    return f"{name}, changes {sorted(kinds)}"


def _write_gguf(path: Path, found: Gguf, given: Random) -> list[int]:
    """A broken GGUF file; returns how it was broken."""
    head, data = bytearray(found.head), found.data
    kinds = {given.randrange(0, 6) for _ in range(given.randrange(1, 3))}
    if 0 in kinds:  # a number, wherever one stands
        number, size = given.choice(NUMBERS), given.choice((1, 4, 8))
        at = given.randrange(4, len(head) - 8)
        head[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
    if 1 in kinds:  # a length or a count of this file becomes another
        at = given.choice([i for i in range(4, len(head) - 8) if head[i + 4 : i + 8] == bytes(4)])
        head[at : at + 8] = (given.choice(NUMBERS) % (1 << 64)).to_bytes(8, "little")
    if 2 in kinds:  # some of it twice, or not at all
        at, size = given.randrange(4, len(head)), given.randrange(1, 80)
        head[at:at] = head[at : at + size]
    if 3 in kinds:
        data = spoilt(given, data)
    content = bytes(head) + data
    if 4 in kinds:
        content = spoilt(given, content)
    path.write_bytes(content)
    return sorted(kinds)


# -- what must hold -------------------------------------------------------------------------------


@dataclass
class Watch:
    """What was opened and started, from an audit hook that is never removed."""

    on: bool = False
    home: str = ""
    seen: list[str] = field(default_factory=list)

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            if isinstance(given[0], str | bytes):
                path = os.fsdecode(given[0])
                if not path.startswith((self.home, *LIBRARIES)):
                    self.seen.append(path)
        elif event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork"):
            self.seen.append(f"{event} {given[0]!r}")


LIBRARIES = (
    *{sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), "/usr", "/proc"},
    *(each for each in sys.path if each.endswith("site-packages")),
)
_watch = Watch()
_hooked: list[bool] = []


@contextlib.contextmanager
def watched(home: Path) -> Iterator[Watch]:
    """Inside, what is opened outside of a folder or started is noted."""
    if not _hooked:
        sys.addaudithook(_watch)
        _hooked.append(True)
    _watch.on, _watch.home, _watch.seen = True, str(home), []
    try:
        yield _watch
    finally:
        _watch.on = False


def open_and_read(folder: Path) -> None:
    """Everything that is done with a checkpoint before a model is built.

    Raises:
        EngineError: it is refused.
    """
    file = folder / GGUF
    checkpoint = open_checkpoint(file if file.exists() else folder)
    rows = list_layers(checkpoint)
    remarks(checkpoint, rows)
    cache_blocks(checkpoint.config)
    refuse_other_models(folder / "config.json", checkpoint.config)
    for row in rows:
        found = read_layer(checkpoint, row)
        assert tuple(found.shape) == row.shape, f"{row.name} is {found.shape}, not {row.shape}"
    assert checkpoint.fingerprint


def fault(folder: Path, given: Random, opened: Callable[[Path], None] = open_and_read) -> str:
    """Break a checkpoint, open it, and say what did not hold; empty if all did."""
    made = write(folder, given)
    begun = time.thread_time()
    with watched(folder) as watch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of casts of numbers that are not finite
        try:
            opened(folder)
        except EngineError as error:
            if not str(error).strip():
                return f"{made}: an error without words"
        except Exception:  # noqa: BLE001 - whatever it is, it is the fault that is looked for
            return f"{made}: {traceback.format_exc()}"
    taken = time.thread_time() - begun
    if taken > SECONDS:
        return f"{made}: {taken:.2f} s"
    return f"{made}: {watch.seen}" if watch.seen else ""


def main() -> int:
    """Break many checkpoints, one after the other."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0, help="of the first; each has its own")
    asked = parser.parse_args()
    faults: Counter[str] = Counter()
    begun, done = time.monotonic(), 0
    print(f"{asked.count} checkpoints, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        for seed in range(asked.seed, asked.seed + asked.count):
            found = fault(Path(name), random.Random(seed))
            done += 1
            if found:
                where = found.strip().splitlines()[-1][:120]
                if not faults[where]:
                    print(f"seed {seed}: {found}", flush=True)
                faults[where] += 1
            if done % 10_000 == 0:
                rate = done / (time.monotonic() - begun)
                print(f"{done} done, {faults.total()} faults, {rate:.0f}/s", flush=True)
    print(f"{done} checkpoints: {faults.total()} faults of {len(faults)} kinds")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
