"""Which GPU the gauges are read from."""

from __future__ import annotations

import pytest

from engine.service.gauges import visible_gpu

UUIDS = ("GPU-aa11", "GPU-bb22", "GPU-bb33")


class Driver:
    """Three GPUs; handles are what they were asked for by."""

    @staticmethod
    def nvmlDeviceGetCount() -> int:
        return len(UUIDS)

    @staticmethod
    def nvmlDeviceGetHandleByIndex(index: int) -> int:
        return index

    @staticmethod
    def nvmlDeviceGetUUID(handle: int) -> str:
        return UUIDS[handle]

    @staticmethod
    def nvmlDeviceGetHandleByUUID(name: str) -> str:
        return name


@pytest.mark.parametrize(
    ("index", "visible", "handle"),
    [
        (0, None, 0),
        (2, None, 2),
        (0, "2", 2),
        (1, "2, 0", 0),
        (0, "GPU-bb3", 2),
        (1, "GPU-aa11,GPU-bb22", 1),
        (0, "MIG-5f", "MIG-5f"),
    ],
)
def test_cuda_numbers_are_those_of_the_visible_devices(
    index: int, visible: str | None, handle: object
) -> None:
    assert visible_gpu(Driver, index, visible) == handle


@pytest.mark.parametrize(("index", "visible"), [(1, "0"), (0, ""), (0, "GPU-cc"), (0, "-1")])
def test_a_device_that_is_not_visible_has_no_gauges(index: int, visible: str) -> None:
    with pytest.raises(LookupError):
        visible_gpu(Driver, index, visible)
