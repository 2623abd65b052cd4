"""What ``--workers`` says, and on which devices that puts processes."""

from __future__ import annotations

import pytest

from engine.errors import UsageError
from engine.workers.asked import beside, parse_workers


@pytest.mark.parametrize(
    ("asked", "device", "gpus", "found"),
    [
        ("", "cpu", 0, ()),
        ("1", "cpu", 0, ()),
        ("3", "cpu", 0, ("cpu", "cpu")),
        ("cpu,cpu", "cpu", 0, ("cpu",)),
        ("auto", "cpu", 0, ()),
        ("auto", "cuda:0", 1, ()),
        ("auto", "cuda:1", 3, ("cuda:0", "cuda:2")),
        ("2", "cuda:0", 4, ("cuda:1",)),
        ("cuda:0, cuda:1", "cuda:0", 2, ("cuda:1",)),
        ("cuda:0,cuda:0", "cuda:0", 1, ("cuda:0",)),
        ("cuda:1", "cuda:0", 2, ("cuda:1",)),
    ],
)
def test_devices_beside_the_engines_own(
    asked: str, device: str, gpus: int, found: tuple[str, ...]
) -> None:
    assert beside(parse_workers(asked), device, gpus) == found


@pytest.mark.parametrize(
    ("asked", "device", "gpus", "said"),
    [
        ("cuda:0", "cpu", 0, "one kind of device"),
        ("3", "cuda:0", 2, "has 2 GPUs"),
        ("cuda:0,cuda:5", "cuda:0", 2, "cuda:5"),
    ],
)
def test_devices_that_cannot_be_had(asked: str, device: str, gpus: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        beside(parse_workers(asked), device, gpus)


@pytest.mark.parametrize("asked", ["0", "-1", "two", "cuda", "cuda:x", "cuda:0,,cuda:1", "9999"])
def test_what_does_not_say_who_measures(asked: str) -> None:
    with pytest.raises(UsageError, match="expected a number of processes"):
        parse_workers(asked)
