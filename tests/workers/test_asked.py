"""What ``--workers`` says, and on which devices that puts processes."""

from __future__ import annotations

import socket
import sys

import pytest

from engine.errors import UsageError
from engine.protocol import Settings
from engine.workers import cluster
from engine.workers.asked import beside, parse_workers
from qtui.cli.options import with_workers


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
        ("ray", "cpu", 0, ()),
        ("ray://head:6379", "cuda:1", 3, ("cuda:0", "cuda:2")),
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


@pytest.mark.parametrize(
    "asked",
    [
        "0", "-1", "two", "cuda", "cuda:x", "cuda:0,,cuda:1", "9999",
        "ray:head", "ray://head:0", "ray://head:99999", "ray://a b", "ray,ray", "ray://a:1/b",
    ],
)  # fmt: skip
def test_what_does_not_say_who_measures(asked: str) -> None:
    with pytest.raises(UsageError, match="expected a number of processes"):
        parse_workers(asked)


@pytest.mark.parametrize(
    ("asked", "address"),
    [
        ("ray", "auto"),
        ("ray://auto", "auto"),
        ("ray://head", "head:6379"),
        ("ray://10.0.0.7:6380", "10.0.0.7:6380"),
        ("RAY://gpu-1.lan:6379/", "gpu-1.lan:6379"),
        ("ray://[fd00::1]:6379", "[fd00::1]:6379"),
        ("auto", ""),
        ("2", ""),
    ],
)
def test_clusters_are_named_by_the_address_of_their_head(asked: str, address: str) -> None:
    assert parse_workers(asked).cluster == address


def test_the_address_of_ray_client_is_not_tried() -> None:
    with pytest.raises(UsageError, match=r"Ray Client.* such as ray://head:6379$"):
        parse_workers("ray://head:10001")


@pytest.mark.parametrize("asked", [None, "ray", "ray://head:6379"])
def test_without_ray_it_is_said_what_to_install(
    asked: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    of_profile = Settings(workers="ray" if asked is None else "2")
    with pytest.raises(UsageError, match=r"pip install 'qtui\[ray\]'") as raised:
        with_workers(of_profile, asked)
    assert raised.value.exit_code == 2
    assert with_workers(of_profile, "2").workers == "2"


def test_a_cluster_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "check_ray", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UsageError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
        cluster.Cluster(f"127.0.0.1:{port}")
