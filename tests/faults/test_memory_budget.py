"""``--memory-budget`` holds on a processor: what a process takes beyond its model."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.forked import _FORKS

MIB = 1 << 20
LOGITS = 4096 * 16384 * 4
"""Bytes of the reference's logits on all windows: what a large budget caches, and a small one must
not."""
MICRO_BATCH, TOKENS = 2048, 4096
"""Tokens of one micro-batch, and of all."""
M_MMAP_THRESHOLD = -3
"""Of ``mallopt``."""
SLACK = 8 * MIB
"""What small objects take, which the allocator keeps."""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the largest resident size in KiB")
def test_the_budget_bounds_what_is_resident_beyond_the_model(tmp_path: Path, prose: Path) -> None:
    source = tiny.build("llama", tmp_path / "model", vocab_size=16384, num_hidden_layers=2)
    one = peak(tmp_path, source, prose, "16MiB", MICRO_BATCH)
    small = peak(tmp_path, source, prose, "16MiB", TOKENS)
    large = peak(tmp_path, source, prose, "2GiB", TOKENS)
    assert small - one < 16 * MIB + SLACK
    assert large - small > LOGITS // 2  # or the budget bounds nothing


def peak(folder: Path, source: Path, prose: Path, budget: str, tokens: int) -> int:
    """The largest resident size of an evaluation, in bytes."""
    found, state = folder / "peak", folder / f"state-{budget}-{tokens}"
    state.mkdir()
    words = ("eval", str(source), "--format", "int4-g32", "--text", str(prose))
    words += ("--tokens", str(tokens), "--seq-len", "64", "--memory-budget", budget)
    environment = {**os.environ, "XDG_STATE_HOME": str(state)}
    process = _FORKS.Process(target=_measured, args=(words, environment, str(found)), daemon=True)
    process.start()
    process.join()
    assert process.exitcode == 0
    return int(found.read_text())


def _measured(words: tuple[str, ...], environment: dict[str, str], found: str) -> None:
    os.environ.update(environment)
    # What is freed is given back at once: what the allocator keeps in pieces depends on all before.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    from qtui.cli import main

    try:
        main(words)
    except SystemExit as end:
        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        Path(found).write_text(str(size))
        sys.exit(end.code)
