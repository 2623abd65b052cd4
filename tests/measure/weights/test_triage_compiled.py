"""Triage with compiled kernels finds what it finds without, and says where it has none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine import protocol as p
from engine.client import in_process
from engine.measure.weights import compiled_kernel, triage
from tests import tiny
from tests.drive import ended, facts, settings, until

FORMATS = ("int4-g32", "int3-g32-sym", "int8-tensor")


@pytest.fixture(autouse=True)
def compiled_anew() -> Iterator[None]:
    compiled = compiled_kernel._compiled
    compiled.cache_clear()
    torch.compiler.reset()
    yield
    compiled.cache_clear()
    torch.compiler.reset()


Errors = dict[str, dict[str, p.WeightError]]
"""By layer, by format."""


def _triage(source: Path, prose: Path) -> tuple[Errors, list[p.AnyEvent]]:
    client = in_process(str(source))
    try:
        client.send(p.Open(str(source), settings(prose, fresh=True, formats=FORMATS)))
        events = until(client, ended("open"))
        client.send(p.Triage(FORMATS))
        events += until(client, ended("triage"))
    finally:
        client.close()
    found: Errors = {}
    for fact in facts(events, p.LayerError):
        assert isinstance(fact, p.LayerError)
        assert fact.error is not None
        found.setdefault(fact.layer, {})[fact.format] = fact.error
    return found, events


def test_triage_with_kernels_finds_the_errors_of_the_plain_path(
    tmp_path: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.build("llama", tmp_path / "model", dtype=torch.float16)
    plain, _ = _triage(source, prose)
    assert plain
    used: list[compiled_kernel.Variant] = []
    run = compiled_kernel._run
    monkeypatch.setattr(
        compiled_kernel, "_run", lambda *given: (used.append(given[0]), run(*given))[1]
    )
    monkeypatch.setattr(triage, "PAYS", 0)
    monkeypatch.setattr(compiled_kernel, "TILE", 1 << 12)
    with_kernels, events = _triage(source, prose)
    if any("no kernel" in e.message for e in events if isinstance(e, p.Notice)):
        pytest.skip("no compiler")
    assert len(used) >= 2 * len(plain)
    assert set(with_kernels) == set(plain)
    for layer, errors in plain.items():
        for format in FORMATS:
            ours, theirs = with_kernels[layer][format], errors[format]
            for name in ("frobenius", "relative", "max_abs", "mean_abs", "sqnr_db"):
                assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=2e-6)


def test_small_checkpoints_are_not_worth_a_compiler(
    tmp_path: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never() -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(compiled_kernel, "_compiled", never)
    found, _ = _triage(tiny.build("llama", tmp_path / "model"), prose)
    assert found


def test_a_missing_compiler_is_told_once(
    tmp_path: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_given: object) -> None:
        raise RuntimeError("g++ is not installed")

    monkeypatch.setattr(compiled_kernel, "_compiled", lambda: no_compiler)
    monkeypatch.setattr(triage, "PAYS", 0)
    monkeypatch.setattr(compiled_kernel, "TILE", 1 << 12)
    found, events = _triage(tiny.build("llama", tmp_path / "model"), prose)
    assert all(set(errors) == set(FORMATS) for errors in found.values())
    told = [e for e in events if isinstance(e, p.Notice) and "no kernel" in e.message]
    assert len(told) == 1
    assert "g++ is not installed" in told[0].message
