"""Figures of what was timed, by NumPy and by hand; the transformers driver on a tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.report.bench_parts import bench_document
from engine.report.tables import bench_text
from engine.runtimes.child import random_prompts, timed_batches
from engine.runtimes.results import Bench, TimedBatch, TimedRun, quantile
from tests import tiny


def test_rates_are_means_of_runs_and_latencies_of_all_steps() -> None:
    runs = (TimedRun(0.5, 6, (0.1, 0.2, 0.3)), TimedRun(1.0, 6, (0.2, 0.2, 0.2)))
    timed = Bench(
        artefact="a", bytes=7, runtime="llama.cpp", python="python", processor="p", load_s=1.0,
        about={"version": "v 1", "device": "cpu", "threads": "3", "dtype": "f16"},
        prompt=8, new=3, warmup=1, repeats=2, batches=(TimedBatch(2, runs, 100, None),),
    )  # fmt: skip
    document = bench_document(timed)
    assert document.threads == 3
    assert document.settings == {"dtype": "f16"}
    (batch,) = document.batches
    assert batch.prompt_tokens_per_s == pytest.approx(np.mean([16 / 0.5, 16 / 1.0]))
    assert batch.tokens_per_s == pytest.approx(10)
    steps = [100, 200, 300, 200, 200, 200]
    assert batch.p50_ms == pytest.approx(np.percentile(steps, 50))
    assert batch.p90_ms == pytest.approx(np.percentile(steps, 90))
    rates = [16 / 0.5, 16 / 1.0]
    assert batch.prompt_tokens_per_s_se == pytest.approx(np.std(rates, ddof=1) / np.sqrt(2))
    text = bench_text(document)
    assert "3 threads" in text
    assert "10.0 ± 0.0" in text


def test_quantiles_equal_numpys() -> None:
    values = list(np.random.default_rng(1).exponential(size=37))
    for share in (0, 0.1, 0.5, 0.9, 1):
        assert quantile(values, share) == pytest.approx(np.quantile(values, share))


def test_transformers_generates_every_token_that_is_counted(tmp_path: Path) -> None:
    from engine.runtimes.drivers.with_transformers import load

    threads = torch.get_num_threads()
    folder = tiny.build("llama", tmp_path / "model")
    request = {
        "path": str(folder), "threads": threads, "device": "cpu", "trust_remote_code": False,
        "batches": [1, 3], "prompt": 5, "new": 4, "warmup": 1, "repeats": 2,
    }  # fmt: skip
    runner = load(request)
    made = []
    generate = runner.model.generate

    def counted(**given: object) -> torch.Tensor:
        made.append(generate(**given))
        return made[-1]

    runner.model.generate = counted
    answers = [each for each in timed_batches(runner, request) if each["kind"] == "batch"]
    assert [tuple(each.shape) for each in made] == [(1, 10)] * 3 + [(3, 10)] * 3
    assert [len(each["runs"]) for each in answers] == [2, 2]
    for answer in answers:
        for run in answer["runs"]:
            assert run["generated"] == 4 * answer["batch"]
            assert len(run["steps_s"]) == 4
            assert run["prompt_s"] > 0


def test_prompts_are_random_tokens_of_the_vocabulary() -> None:
    first, second = random_prompts(2, 100, 50, 0)
    assert first != second
    assert len(first) == 100
    assert all(0 <= each < 50 for each in first)
    assert random_prompts(2, 100, 50, 0) == [first, second]
