"""What workers are asked for: their share of the memory, and the same checkpoint and text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from engine import protocol as p
from engine.measure import sharing
from engine.measure.sharing import hosted, why_not
from engine.model.streaming import fits
from engine.workers.cluster import Cluster, Node

GIB = 1 << 30
PROTOCOL = p.Protocol(
    text="prose", text_sha256="0", tokens=128, seq_len=32, stride=31, windows=4,
    dtype="float32", device="cuda:0",
)  # fmt: skip


def loaded(weights: int = GIB) -> Any:
    """What is asked of a loaded model."""
    network = SimpleNamespace(device=torch.device("cpu"), weights_in_memory=weights)
    return SimpleNamespace(settings=p.Settings(), network=network, protocol=PROTOCOL)


def ready(protocol: p.Protocol) -> p.ModelReady:
    return p.ModelReady(
        device="cuda:1", device_reason="", dtype="float32", dtype_reason="", blocks=2,
        resumable=True, protocol=protocol, load_s=1.0, memory=GIB,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("free", "workers"), [(10, 1), (10, 4), (2.5, 2), (2, 2), (1.5, 2), (0, 1)]
)
def test_workers_load_the_model_only_if_all_of_them_can(
    free: float, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "memory_free", lambda device: int(free * GIB))
    budget = sharing._settings(loaded(), workers).memory_budget
    assert budget is not None
    resident = fits(GIB, int(free * GIB), budget)
    assert resident == (free > workers)
    assert resident or budget <= max(1, free * GIB / (2 * workers))


def test_another_number_of_a_device_is_no_difference() -> None:
    same = msgspec.structs.replace(PROTOCOL, device="cuda:1")
    assert why_not(loaded(), [ready(same)]) == ""


def test_a_difference_is_named_not_the_number_of_a_device() -> None:
    other = msgspec.structs.replace(PROTOCOL, device="cuda:1", windows=3)
    assert why_not(loaded(), [ready(other)]) == "its windows is 3 instead of 4"


def test_a_worker_that_has_not_loaded_the_model_cannot_take_part() -> None:
    assert why_not(loaded(), []) == "it has not loaded the model"
    refused = p.Refused(command="Open", message="no such file")
    assert "no such file" in why_not(loaded(), [refused])


NODES = (
    Node("a", "gpu-1", gpus=2, processors=16),
    Node("b", "small", gpus=0, processors=2),
    Node("c", "head", gpus=1, processors=0),
)


@pytest.mark.parametrize(
    ("threads", "names", "places"),
    [
        (
            None,
            ["2 on gpu-1", "3 on gpu-1", "4 on head"],
            [("a", True, None), ("a", True, None), ("c", True, None)],
        ),
        (8, ["2 on gpu-1", "3 on small"], [("a", False, 8), ("b", False, 2)]),
    ],
)
def test_hosts_have_a_worker_for_each_gpu_or_one_with_the_engines_threads(
    threads: int | None, names: list[str], places: list[tuple[str, bool, int | None]]
) -> None:
    cluster: Any = SimpleNamespace(nodes=NODES)
    cluster.worker = lambda *given: Cluster.worker(cluster, *given)
    found: list[Any] = list(hosted(cluster, threads, 1))
    assert [each.name for each in found] == names
    assert [(e._place.node, e._place.gpu, e._place.threads) for e in found] == places
    assert {each.device for each in found} == {"cuda:0" if threads is None else "cpu"}
