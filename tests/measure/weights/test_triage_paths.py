"""Triage finds the same by the compiled pass and without it, and says where it has none."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine import protocol as p
from engine.measure.weights import fused, measuring, triage
from engine.measure.weights.fused import Pass
from engine.measure.weights.passes import Passes
from engine.store.facts import FactStore
from engine.workspace import Opened
from tests import tiny
from tests.drive import open_files, settings

FORMATS = ("int4-g32", "int3-g32-sym", "int8", "int8-tensor", "nf4-g64")
MISSING = "numba is missing"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FactStore]:
    made = FactStore(tmp_path / "facts.sqlite")
    yield made
    made.close()


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (triage, measuring):
        monkeypatch.setattr(module, "kernels", lambda: MISSING)


def run(opened: Opened) -> tuple[dict[str, p.AnyFact], list[str]]:
    """All facts of a triage by key, and what it said."""
    found: dict[str, p.AnyFact] = {}
    said = []
    for event in triage.triage(opened, FORMATS, "triage-1"):
        if isinstance(event, p.Learned):
            found.update(zip(event.keys, event.facts, strict=True))
        elif isinstance(event, p.Notice):
            said.append(event.message)
    return found, said


def opened(model: str, dtype: torch.dtype, tmp_path: Path, store: FactStore) -> Opened:
    return open_files(tiny.build(model, tmp_path / model, dtype=dtype), store, settings())


def same(one: object, other: object, where: str) -> None:
    """Equal, but for the order of sums in numbers."""
    fields = getattr(one, "__struct_fields__", None)
    if fields is not None:
        assert type(one) is type(other)
        for name in fields:
            same(getattr(one, name), getattr(other, name), f"{where}.{name}")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-12, nan_ok=True), where
    else:
        assert one == other, where


@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        ("llama", torch.float16),
        ("qwen3", torch.bfloat16),  # a tied head
        ("mixtral", torch.float32),
        ("gpt2", torch.float16),  # transposed on disk
    ],
)
def test_both_ways_find_the_same_facts(
    model: str,
    dtype: torch.dtype,
    tmp_path: Path,
    store: FactStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = opened(model, dtype, tmp_path, store)
    with_numba, said = run(checkpoint)
    assert not said
    for module in (triage, measuring):
        monkeypatch.setattr(module, "kernels", lambda: MISSING)
    without, _ = run(checkpoint)
    assert list(with_numba) == list(without)
    for key, fact in with_numba.items():
        same(fact, without[key], str(fact)[:60])


@pytest.mark.usefixtures("without_numba")
def test_a_missing_numba_is_said_once(tmp_path: Path, store: FactStore) -> None:
    _, said = run(opened("llama", torch.float16, tmp_path, store))
    assert said == [MISSING]


@pytest.mark.parametrize("problem", [ImportError("No module named 'numba'"), RuntimeError("?")])
def test_why_there_are_no_kernels_is_a_sentence(
    problem: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def over(*_given: object) -> None:
        raise problem

    monkeypatch.setattr(Pass, "over", over)
    fused.kernels.cache_clear()
    try:
        said = fused.kernels()
    finally:
        fused.kernels.cache_clear()
    assert isinstance(said, str)
    assert str(problem) in said
    assert "step by step" in said


def test_a_tied_head_is_passed_over_once(
    tmp_path: Path, store: FactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = opened("qwen3", torch.float16, tmp_path, store)
    assert checkpoint.tied
    begun: list[Pass] = []
    begin = Passes.begin

    def counted(self: Passes, work: Pass, sigma: float) -> object:
        begun.append(work)
        return begin(self, work, sigma)

    monkeypatch.setattr(Passes, "begin", counted)
    found, _ = run(checkpoint)
    assert len(begun) == len(checkpoint.rows) - 1
    facts = [fact for fact in found.values() if isinstance(fact, p.LayerWeights)]
    assert {fact.layer for fact in facts} == set(checkpoint.rows)


def test_a_scale_that_overflows_is_refused_by_name(tmp_path: Path, store: FactStore) -> None:
    checkpoint = opened("llama", torch.float32, tmp_path, store)
    huge = next(iter(checkpoint.rows.values()))
    tensor = checkpoint.checkpoint.tensors[huge.parts[0]]
    with tensor.file.open("r+b") as file:
        file.seek(tensor.start)
        file.write(torch.tensor([1e9]).numpy().tobytes())
    found, _ = run(checkpoint)
    refused = {
        fact.format: fact.refused
        for fact in found.values()
        if isinstance(fact, p.LayerError) and fact.layer == huge.name and fact.refused
    }
    assert set(refused) == {"int4-g32", "int3-g32-sym", "int8", "int8-tensor"}
    assert all(huge.name in why and "needs a scale of" in why for why in refused.values())


def test_a_cancelled_triage_ends_its_threads(tmp_path: Path, store: FactStore) -> None:
    steps = triage.triage(opened("llama", torch.float16, tmp_path, store), FORMATS, "triage-1")
    while not isinstance(next(steps), p.Progress):
        pass
    next(steps)
    steps.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("triage")]


def test_integer_formats_need_no_torch(tmp_path: Path) -> None:
    tiny.build("llama", tmp_path / "model", dtype=torch.bfloat16)
    program = f"""
import sys
from qtui.cli import main
sys.argv = ["qtui", "triage", {str(tmp_path / "model")!r}, "--formats", "int4-g32,int8"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(sorted({{"torch", "transformers", "datasets"}} & set(sys.modules)), file=sys.stderr)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=True
    )
    assert ended.stderr.rstrip().endswith("[]"), ended.stderr
    assert "lm_head" in ended.stdout


def test_nothing_is_kept_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home that is a file: compiled code is used all the same."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    program = """
from engine import compiling
from engine.measure.weights import fused_kernels
import numba, numpy
assert not compiling.KEPT
assert not numba.config.CACHE_DIR
found = numpy.array([1.0, -1.0])
bits, reach = numpy.ones((1, 8), numpy.uint16), numpy.ones(1, bool)
room = numpy.empty(8, numpy.float32)
assert fused_kernels.beyond(bits, fused_kernels.HALF, reach, 5.0, 1.0, room, found) == 8
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=200)
